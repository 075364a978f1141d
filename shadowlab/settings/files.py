"""From presets, YAML files and `--set` to a Config.

Precedence: defaults < `base:` entries in order < the file itself < command-line options < `--set`.
Every key remembers where it came from, so that an error names the file or the option to correct.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

import shadowlab
from shadowlab.errors import TaskOptionError, UserError
from shadowlab.settings.keys import Section, leaves, marks_of, section_of, values
from shadowlab.settings.schema import Config

DEFAULT_PRESET = "tiny"
S = TypeVar("S", bound=Section)

_TOO_DEEP = "nested too deeply, or an alias holds itself (`&a {key: *a}`); write the values out"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.2) and refuses a key given twice."""

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


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers: a folder may be called 1e4."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def presets_folder() -> Path:
    """Where the presets lie: `configs/` of a checkout, or the copy inside the installed package."""
    installed = Path(shadowlab.__file__).parent / "configs"
    return installed if installed.is_dir() else Path(shadowlab.__file__).parents[1] / "configs"


def preset_names() -> list[str]:
    """What `--config` takes besides files, in alphabetical order."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


@dataclass(frozen=True)
class ResolvedConfig:
    """A Config, and where each of its values came from."""

    config: Config
    origins: Mapping[str, str]
    """Dotted key to `preset NAME`, a file, `--set KEY=VALUE` or an option. Where nothing was said, a key is absent."""

    def origin_of(self, key: str) -> str:
        """Of a dotted key; `default` where nothing was said."""
        return self.origins.get(key, "default")

    def to_json(self) -> dict[str, Any]:
        """The configuration as a tree, and the origin of every key."""
        return {
            "config": self.config.model_dump(mode="json"),
            "origins": {key: self.origin_of(key) for key in values(self.config)},
        }


def load_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Config:
    """Build a Config.

    Args:
        preset: name of a preset; excludes `file`. Neither means `tiny`.
        file: a YAML file, or a preset's name.
        options: dotted keys to values from dedicated command-line options.
        assignments: texts `a.b=value` from `--set`; the value is YAML.

    Raises:
        UserError: unknown preset, file, key or value, in one line that names its place and the fix.
    """
    return resolve_config(preset=preset, file=file, options=options, assignments=assignments).config


def resolve_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> ResolvedConfig:
    """`load_config`, with where each value came from."""
    if preset is not None and file is not None:
        raise UserError("--preset and --config exclude each other: put `base: [PRESET]` into the file instead")
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _merge_file(_find(str(file) if file is not None else preset or DEFAULT_PRESET), merged, origins, ())
    for key, value in (options or {}).items():
        _assign(merged, origins, key, value, _option(key))
    for text in assignments:
        for key, value in _assigned(text):
            _assign(merged, origins, key, value, f"--set {text}")
    presets = {str((presets_folder() / f"{name}.yaml").resolve()): f"preset {name}" for name in preset_names()}
    config = _validate(merged, origins)
    return ResolvedConfig(config, {key: presets.get(origin, origin) for key, origin in origins.items()})


def _option(key: str) -> str:
    """What a person typed for a key that came from an option: the first form of it."""
    marks = {name: marks_of(field) for name, field in leaves(Config)}.get(key)
    return marks.option.partition("/")[0] if marks is not None and marks.option else f"--set {key}"


def _assigned(text: str) -> list[tuple[str, Any]]:
    """Keys and values of the text after one --set."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: write it as section.key=value, for example --set optimizer.eps=1e-6")
    try:
        return list(_leaves({key.strip(): yaml.load(value, _Loader)}))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {text}: the value is not YAML ({_one_line(error)})") from None
    except RecursionError:
        raise UserError(f"--set {text}: {_TOO_DEEP}") from None


def dump_config(config: Config) -> str:
    """YAML text that `load_config(file=...)` reads back to an equal Config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def as_yaml(value: Any) -> str:
    """A value on one line, as it may stand in a configuration file."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _find(name: str) -> Path:
    if name in preset_names():
        return presets_folder() / f"{name}.yaml"
    path = Path(name)
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name too long for the file system, a folder that may not be entered
        raise UserError(f"{name}: cannot be read ({error.strerror}); give another file") from None
    close = difflib.get_close_matches(name, preset_names(), 1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    raise UserError(f"{name}: neither a file nor a preset ({', '.join(preset_names())}){hint}")


def _merge_file(path: Path, merged: dict[str, Any], origins: dict[str, str], chain: tuple[Path, ...]) -> None:
    path = path.resolve()
    if path in chain:
        raise UserError(f"{path}: `base` leads back to this file; remove it from the chain")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({_one_line(error)})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        raise UserError(f"{path}: not readable as YAML ({_one_line(error)})") from None
    except RecursionError:
        raise UserError(f"{path}: {_TOO_DEEP}") from None
    if content is None or content == {}:
        raise UserError(f"{path}: no settings in it; write some, for example `base: [tiny]`, or leave the file out")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of sections, for example `train: {{max_steps: 100}}`")
    bases = content.pop("base", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: `base` must be a list of presets or files, for example [sdxl]")
    for base in bases:
        neighbour = path.parent / base
        try:
            found = neighbour if neighbour.is_file() else _find(base)
        except UserError as error:
            raise UserError(f"{path}: base {error}") from None
        _merge_file(found, merged, origins, (*chain, path))
    try:
        leaves = list(_leaves(content))
    except RecursionError:
        raise UserError(f"{path}: {_TOO_DEEP}") from None
    given = dict(leaves)
    for old, new in _MOVED.items():
        if old in given and new in given and given[old] != given[new]:
            raise UserError(f"{path}: {old} is {new} now, and both are given with other values; remove {old}")
    for key, value in leaves:
        _assign(merged, origins, key, value, str(path))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Keys that moved; under their old names they are read as before.
_MOVED = {"overfit.min_soft_iou": "task_options.min_soft_iou", "validation.light_sweep": "task_options.light_sweep"}


def _assign(merged: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str) -> None:
    key = _MOVED.get(key, key)
    *sections, last = key.split(".")
    section = _section(key)
    if section is not None and not isinstance(value, Mapping):
        example = next(iter(section.model_fields))
        got = "" if origin.startswith("--set") else f"; got {value!r}"
        raise UserError(f"{origin}: {key} is a section; set one of its keys, e.g. {key}.{example}=...{got}")
    node = merged
    for name in sections:
        child = node.get(name)
        if not isinstance(child, dict):
            child = node[name] = {}
        node = child
    if value == {} and isinstance(node.get(last), dict):
        return  # an empty section changes nothing; it does not take the bases' settings away
    node[last] = value
    origins[key] = origin


def _validate(merged: dict[str, Any], origins: dict[str, str]) -> Config:
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        origin = next((origins[k] for k in origins if k == key or k.startswith(f"{key}.")), None)
        if origin is None:  # an element of a list, or a check across keys
            origin = next((origins[k] for k in origins if key.startswith(f"{k}.")), "configuration")
        if first["type"] == "extra_forbidden":
            raise UserError(f"{origin}: {_unknown_key(key)}") from None
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if first["type"] in ("tuple_type", "list_type"):
            message = f"must be a list: write [{first['input']}]"
        if not key:
            raise UserError(message) from None
        got = "" if isinstance(first["input"], dict) else f"; got {first['input']!r}"
        is_option = origin.startswith("--") and not origin.startswith("--set ")
        place = origin if is_option else f"{origin}: {key}"  # --samples says it all
        raise UserError(f"{place}: {message}{got}") from None


def checked_section(model: type[S], values: Mapping[str, Any], name: str) -> S:
    """`values` of the configuration's key `name`, as a section that is described elsewhere.

    Raises:
        TaskOptionError: an unknown key, or a value that it does not take.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            last = str(first["loc"][-1])
            close = difflib.get_close_matches(last, list(model.model_fields), 1, cutoff=0.5)
            has = ", ".join(model.model_fields)
            hint = (
                f"Did you mean `{name}.{close[0]}`?" if close else f"This task has: {has}." if has else "It has none."
            )
            raise TaskOptionError(key, f"`{key}` is not an option. {hint}") from None
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise TaskOptionError(key, f"{key}: {message}; got {first['input']!r}") from None


def _section(key: str) -> type[Section] | None:
    """The section that `key` names, if it names one and no value."""
    return section_of(Config.model_fields.get(key))


def _unknown_key(key: str) -> str:
    """What was meant, as far as can be guessed; else all that its section has."""
    *sections, last = key.split(".")
    model: type[Section] = Config
    for section in sections:
        model = model.model_fields[section].annotation  # type: ignore[assignment]
    here = [".".join([*sections, name]) for name in model.model_fields]
    elsewhere = [name for name, _ in leaves(Config)]

    def name_of(key: str) -> str:
        return key.rpartition(".")[2]

    def initials(key: str) -> str:  # lr for learning_rate
        return "".join(word[0] for word in name_of(key).split("_"))

    close = difflib.get_close_matches(last, map(name_of, here), 1, cutoff=0.5)
    meant = [
        *(one for one in elsewhere if name_of(one) == last),
        *(one for one in here + elsewhere if len(last) > 1 and initials(one) == last),
        *(one for one in here if name_of(one) in close),
    ]
    hint = f"Did you mean `{meant[0]}`?" if meant else f"It has: {', '.join(model.model_fields)}."
    return f"`{key}` is not an option. {hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
