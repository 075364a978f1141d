"""The `shadowlab` command. Its commands are called as such; what there is, other programs may ask."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.description import CommandDescription, describe_commands

__all__ = ["CommandDescription", "describe_commands"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: a command must first hear signals."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import cli.description

    return getattr(cli.description, name)
