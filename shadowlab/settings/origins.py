"""The resolved configuration for people: YAML in which each value says where it came from."""

from collections.abc import Iterator
from typing import Any

from shadowlab.settings.files import ResolvedConfig
from shadowlab.settings.yaml_text import as_yaml

_COLUMN = 44  # where the comments begin, unless a value reaches further


def format_origins(resolved: ResolvedConfig) -> str:
    """YAML text that `load_config(file=...)` reads back to an equal Config, with a comment behind each value."""
    return "".join(f"{line}\n" for line in _lines(resolved.config.model_dump(mode="json"), resolved, ()))


def _lines(tree: dict[str, Any], resolved: ResolvedConfig, sections: tuple[str, ...]) -> Iterator[str]:
    for name, value in tree.items():
        path, indent = (*sections, name), "  " * len(sections)
        if isinstance(value, dict) and value:
            yield f"{indent}{as_yaml(name)}:"
            yield from _lines(value, resolved, path)
        else:
            text = f"{indent}{as_yaml(name)}: {as_yaml(value)}"
            yield f"{text:<{_COLUMN}}  # {' '.join(resolved.origin_of('.'.join(path)).split())}"
