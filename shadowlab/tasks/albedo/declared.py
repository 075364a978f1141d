"""What a data set says of itself in metadata.json: the colour space of its files, and the object of each sample."""

from dataclasses import dataclass, field
from pathlib import Path

from shadowlab.data import JsonObject, Problem, describe, parse_object, read_file, read_keys, read_text
from shadowlab.errors import UserError
from shadowlab.tasks.colour import SPACES, ColourSpace

METADATA = "metadata.json"
_KEYS = ("colour_space", "samples")
_PICTURES = ("beauty", "albedo")


@dataclass(frozen=True)
class Metadata:
    """All of it; empty where there is no such file."""

    spaces: dict[str, ColourSpace] = field(default_factory=dict)
    """`beauty` and `albedo`, where they are declared."""
    objects: dict[str, str | None] | None = None
    """Sample id -> object, or None where it names none; None: no samples are listed."""

    def object_of(self, name: str) -> str | None:
        return None if self.objects is None else self.objects.get(name)


def read_metadata(folder: Path, problems: list[Problem]) -> Metadata:
    """Of the folder in which it would lie; each fault is added to `problems`."""
    if not (folder / METADATA).exists():
        return Metadata()
    try:
        pairs = parse_object(read_file(folder / METADATA), METADATA)
    except UserError as error:
        problems.append(Problem(METADATA, str(error).removeprefix(f"{METADATA}: ")))
        return Metadata()
    messages: list[str] = []
    values = read_keys(pairs, _KEYS, METADATA, messages)
    spaces = _spaces(values.get("colour_space"), messages)
    problems += [Problem(METADATA, message.removeprefix(f"{METADATA}: ")) for message in messages]
    return Metadata(spaces, _objects(values.get("samples"), problems))


def _spaces(value: object, messages: list[str]) -> dict[str, ColourSpace]:
    """One space for both, or one for each."""
    if value is None:
        return {}
    named = dict.fromkeys(_PICTURES, value) if isinstance(value, str) else value
    if isinstance(named, JsonObject):
        named = read_keys(named, _PICTURES, METADATA, messages)
    if not isinstance(named, dict):
        messages.append(f"{METADATA}: colour_space is {describe(value)}; write {{'beauty': 'srgb', 'albedo': 'srgb'}}")
        return {}
    found: dict[str, ColourSpace] = {}
    for name, space in named.items():
        if space in SPACES:
            found[name] = space
        else:
            messages.append(
                f"{METADATA}: colour_space of {name} is {describe(space)}; write {' or '.join(map(repr, SPACES))}"
            )
    return found


def _objects(value: object, problems: list[Problem]) -> dict[str, str | None] | None:
    if value is None:
        return None
    if not isinstance(value, JsonObject):
        problems.append(Problem(METADATA, f"samples is {describe(value)}, expected an object of sample ids"))
        return None
    found: dict[str, str | None] = {}
    for name, entry in value:
        messages: list[str] = []
        if name in found:
            problems.append(Problem(name, f"{METADATA}: duplicate id; give each sample an id of its own"))
        elif not is_safe(name):
            problems.append(Problem(name, f"{METADATA}: unsafe id; use a plain file name without path or extension"))
        elif isinstance(entry, JsonObject):
            found[name] = read_text(read_keys(entry, ("object",), METADATA, messages), "object", METADATA, messages)
        else:
            messages.append(f"{METADATA}: the entry is {describe(entry)}, expected an object such as {{'object': ...}}")
        problems += [Problem(name, message) for message in messages]
    return found


def is_safe(sample: str) -> bool:
    """Whether an id can be the name of a file."""
    return bool(sample) and not sample.startswith(".") and not any(c in "/\\" or not c.isprintable() for c in sample)


def require_space(declared: ColourSpace | None, option: ColourSpace | None, picture: str, where: str) -> ColourSpace:
    """The colour space of a data set's pictures, said by itself or by `task_options`.

    Raises:
        UserError: nobody says it, or both do and differ.
    """
    key = f"task_options.{picture}_space"
    if declared is not None and option is not None and declared != option:
        raise UserError(
            f"{where}: {METADATA} declares its {picture} {declared}, and {key} is {option}; leave the option out, or "
            f"correct {METADATA}"
        )
    found = declared or option
    if found is None:
        raise UserError(
            f"{where}: nothing says in which colour space its {picture} files are, and it is never guessed; give --set "
            f"{key}=srgb (files that look right on a screen) or =linear, or declare `colour_space` in {METADATA}"
        )
    return found
