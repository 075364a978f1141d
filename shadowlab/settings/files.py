"""From presets, YAML files and `--set` to a Config.

Precedence: defaults < `base:` entries in order < the file itself < command-line options < `--set`.
Every key remembers where it came from, so that an error names the file or the option to correct.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

import shadowlab
from diagnostics.files import reason_of, require_inside
from shadowlab.errors import TaskOptionError, UserError
from shadowlab.settings.augment import REFUSED
from shadowlab.settings.keys import Section, leaves, marks_of, section_of, values
from shadowlab.settings.schema import Config
from shadowlab.settings.yaml_text import dump_yaml, parse_yaml, read_mapping

DEFAULT_PRESET = "tiny"
S = TypeVar("S", bound=Section)

_MOST_FILES = 64  # of one configuration; presets have a base or two
_SHOWN = 60  # characters of a value in a message


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
    found = _find(str(file) if file is not None else preset or DEFAULT_PRESET)
    is_kept = _is_of_run(found)
    if is_kept:
        _require_own(found)
    merging = _Merging(follows_bases=not is_kept)
    merging.add_file(found)
    for key, value in (options or {}).items():
        merging.assign(key, value, _option(key))
    for text in assignments:
        for key, value in _assigned(text):
            merging.assign(key, value, f"--set {text}")
    merged, origins = merging.merged, merging.origins
    presets = {str((presets_folder() / f"{name}.yaml").resolve()): f"preset {name}" for name in preset_names()}
    config = _validate(merged, origins)
    return ResolvedConfig(config, {key: presets.get(origin, origin) for key, origin in origins.items()})


def load_kept_config(file: Path) -> Config:
    """The configuration that a run or an incident keeps in its folder; it is whole, so no other file is read.

    Raises:
        UserError: it cannot be read, is a link out of its folder, or names a `base`.
    """
    _require_own(file)
    merging = _Merging(follows_bases=False)
    merging.add_file(file)
    return _validate(merging.merged, merging.origins)


def _is_of_run(file: Path) -> bool:
    """Whether a file is what a run keeps: the run may be somebody else's."""
    names = ("environment.json", "metrics.jsonl", "stages.json", "verdict.json")
    return file.name == "config.yaml" and any(os.path.lexists(file.parent / name) for name in names)


def _require_own(file: Path) -> None:
    try:
        require_inside(file, file.parent)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)})") from None


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
        return list(_leaves({key.strip(): parse_yaml(value)}))
    except ValueError as error:
        raise UserError(f"--set {text}: the value is not YAML ({error})") from None


def dump_config(config: Config) -> str:
    """YAML text that `load_config(file=...)` reads back to an equal Config."""
    return dump_yaml(config.model_dump(mode="json"))


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


class _Merging:
    """Files that become one tree: each over its bases, and what comes later over what came before.

    Args:
        follows_bases: whether `base` may name other files; what a run keeps is whole, and names none.
    """

    def __init__(self, *, follows_bases: bool) -> None:
        self.merged: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self._follows_bases = follows_bases
        self._num_files = 0

    def add_file(self, path: Path, chain: tuple[Path, ...] = ()) -> None:
        """A file with its bases. chain: the files that name it."""
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links
            raise UserError(f"{path}: cannot be read ({_one_line(error)})") from None
        if path in chain:
            raise UserError(f"{path}: `base` leads back to this file; remove it from the chain")
        self._num_files += 1
        if self._num_files > _MOST_FILES:
            raise UserError(f"{path}: `base` leads to more than {_MOST_FILES} files; name fewer")
        content = read_mapping(path)
        self._add_bases(path, content.pop("base", []), chain)
        leaves = list(_leaves(content))
        given = dict(leaves)
        for old, new in _MOVED.items():
            if old in given and new in given and given[old] != given[new]:
                raise UserError(f"{path}: {old} is {new} now, and both are given with other values; remove {old}")
        for key, value in leaves:
            self.assign(key, value, str(path))

    def assign(self, key: str, value: Any, origin: str) -> None:
        """One value, under its dotted key."""
        _assign(self.merged, self.origins, key, value, origin)

    def _add_bases(self, path: Path, bases: Any, chain: tuple[Path, ...]) -> None:
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise UserError(f"{path}: `base` must be a list of presets or files, for example [sdxl]")
        if bases and not self._follows_bases:
            raise UserError(f"{path}: `base` is not followed here: a run keeps its whole configuration; remove the key")
        for base in bases:
            neighbour = path.parent / base
            try:
                found = neighbour if neighbour.is_file() else _find(base)
            except (UserError, OSError, ValueError) as error:
                raise UserError(f"{path}: base {_one_line(error)}") from None
            self.add_file(found, (*chain, path))


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
        got = "" if origin.startswith("--set") else f"; got {_shown(value)}"
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
            given = first["input"]
            message = f"must be a list: write [{given[:_SHOWN] if isinstance(given, str) else _shown(given)}]"
        if not key:
            raise UserError(message) from None
        got = "" if isinstance(first["input"], dict) else f"; got {_shown(first['input'])}"
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
        raise TaskOptionError(key, f"{key}: {message}; got {_shown(first['input'])}") from None


def _section(key: str) -> type[Section] | None:
    """The section that `key` names, if it names one and no value."""
    section: type[Section] | None = Config
    for name in key.split("."):
        section = section_of(section.model_fields.get(name)) if section is not None else None
    return section


def _unknown_key(key: str) -> str:
    """What was meant, as far as can be guessed; else all that its section has. Or why there is no such key."""
    if key in REFUSED:
        return f"there is no `{key}`: {REFUSED[key]}."
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


def _shown(value: Any) -> str:
    """A value for a message, however large it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
