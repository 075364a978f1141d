"""The `shadowlab` command. Its commands are called as such; what there is, other programs may ask."""

from cli.description import CommandDescription, describe_commands

__all__ = ["CommandDescription", "describe_commands"]
