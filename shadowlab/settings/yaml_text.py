"""YAML as configurations are written in it: strict, and bounded, for it may come from anywhere."""

import re
from pathlib import Path
from typing import Any

import yaml

from diagnostics.files import read_text, reason_of
from shadowlab.errors import UserError

_MOST_CHARACTERS = 2**18
_MOST_NODES = 10_000  # a configuration has about a hundred
_MOST_DEPTH = 32
_MOST_DIGITS = 100

_TOO_DEEP = "nested too deeply, or an alias holds itself (`&a {key: *a}`); write the values out"
_TOO_MUCH = f"more than {_MOST_NODES:,} values, those that aliases repeat counted each time; write fewer"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.2), refuses a key given twice, and has bounds."""

    _num_nodes = 0
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Counted while it is read, so that nothing is built that is refused anyway."""
        self._num_nodes += 1
        self._depth += 1
        if self._num_nodes > _MOST_NODES:
            raise ValueError(_TOO_MUCH)
        if self._depth > _MOST_DEPTH:
            raise ValueError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """Aliases share what they repeat; whoever reads the values walks through each, so each counts."""
        _written_out(node, {}, ())
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)):  # also None and dates; lists could not even be compared
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:  # of thousands of digits: slow to read, and Python will not show it
            raise ValueError(f"a whole number of {len(node.value):,} digits")
        return super().construct_yaml_int(node)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers: a folder may be called 1e4."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str) -> Any:
    """What YAML text says: plain values alone.

    Raises:
        ValueError: it is not YAML, has a key twice, or is larger or nested deeper than any configuration; one line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, at most {_MOST_CHARACTERS:,} are read")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date such as 2026-13-01
        raise ValueError(" ".join(str(error).split())) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, not empty. Raises UserError that names it where there is none."""
    try:
        content = parse_yaml(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    except UnicodeDecodeError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({said})") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from None
    if content is None or content == {}:
        raise UserError(f"{path}: no settings in it; write some, for example `base: [tiny]`, or leave the file out")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of sections, for example `train: {{max_steps: 100}}`")
    return content


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back to an equal value; keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def as_yaml(value: Any) -> str:
    """A value on one line, as it may stand in a configuration file."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _written_out(node: yaml.Node, known: dict[int, tuple[int, int]], around: tuple[int, ...]) -> tuple[int, int]:
    """Number of nodes, and of characters, once every alias is replaced by what it stands for.

    Args:
        known: of the nodes that were counted already. around: those that this one is in.

    Raises:
        ValueError: too many, or a node holds itself.
    """
    if id(node) in around:
        raise ValueError(_TOO_DEEP)
    if id(node) not in known:
        if isinstance(node, yaml.ScalarNode):
            known[id(node)] = (1, len(node.value))
        else:
            inner = [one for item in node.value for one in (item if isinstance(item, tuple) else (item,))]
            counts = [_written_out(one, known, (*around, id(node))) for one in inner]
            num_nodes = 1 + sum(count for count, _ in counts)
            num_characters = sum(count for _, count in counts)
            if num_nodes > _MOST_NODES or num_characters > _MOST_CHARACTERS:
                raise ValueError(_TOO_MUCH)
            known[id(node)] = (num_nodes, num_characters)
    return known[id(node)]
