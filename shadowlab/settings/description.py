"""The configuration's keys as data: for the documentation, for `shadowlab config schema`, for help texts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from shadowlab.settings.keys import Marks, Section, leaves, marks_of, section_of
from shadowlab.settings.schema import Config

JsonSchema = dict[str, Any]

_BASE = {
    "description": "Presets or files that this file builds on, in this order; what it says itself comes last.",
    "examples": [["sdxl"]],
    "items": {"type": "string"},
    "type": "array",
}


@dataclass(frozen=True)
class KeyDescription:
    """All that is known of a key."""

    name: str
    """`train.max_steps`"""
    type: str
    """In words: `integer`, `number or null`, `list of number`, `one of ddp, fsdp2`."""
    limits: str
    """In words: `greater than 0`, `at least 0, less than 1`; empty where the type says it all."""
    choices: tuple[Any, ...]
    """All possible values, where they are few; else empty."""
    default: Any
    """As JSON has it."""
    text: str
    """What it means: sentences on one line, code in backticks."""
    examples: tuple[Any, ...]
    """Values that may be written; empty where the default is example enough."""
    marks: Marks

    @property
    def section(self) -> str:
        """The part before the last dot; empty for a key outside sections."""
        return self.name.rpartition(".")[0]

    @property
    def in_model_hash(self) -> bool:
        return self.marks.decides == "model"

    @property
    def first_sentence(self) -> str:
        """For a help text: up to the first full stop or semicolon, with the stop."""
        ends = [end for stop in (". ", "; ") if (end := self.text.find(stop)) >= 0]
        return f"{self.text[: min(ends)]}." if ends else self.text

    def to_json(self) -> dict[str, Any]:
        """One flat object; `decides` is explained at `shadowlab.settings.Decides`."""
        own = {name: value for name, value in asdict(self).items() if name != "marks"}
        return own | asdict(self.marks) | {"in_model_hash": self.in_model_hash}


@cache
def describe_keys(section: type[Section] = Config, prefix: str = "") -> tuple[KeyDescription, ...]:
    """Every key of the configuration, in the order of its declaration; or of another section, such as a task's options.

    Args:
        prefix: what precedes the names of another section's keys, `task_options.`.
    """
    schema = _inlined(section)
    return tuple(_described(name, section, schema, prefix) for name, _ in leaves(section))


def describe_key(name: str) -> KeyDescription:
    """The key of that dotted name; KeyError where there is none."""
    return _by_name()[name]


def describe_sections() -> dict[str, str]:
    """Dotted name of every section to what it holds; a section inside another follows it."""
    return dict(_described_sections(Config, json_schema()))


def _described_sections(model: type[Section], schema: JsonSchema, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            found = _properties(schema)[name]
            yield f"{prefix}{name}", found.get("description", "")
            yield from _described_sections(section, found, f"{prefix}{name}.")


@cache
def _by_name() -> dict[str, KeyDescription]:
    return {key.name: key for key in describe_keys()}


def _holds(name: str) -> bool:
    return section_of(Config.model_fields[name]) is not None


def _described(name: str, model: type[Section], schema: JsonSchema, prefix: str) -> KeyDescription:
    *sections, last = name.split(".")
    for section in sections:
        schema = _properties(schema)[section]
        model = section_of(model.model_fields[section]) or model
    found, marks = _properties(schema)[last], marks_of(model.model_fields[last])
    assert marks is not None, name  # Section sees to it
    return KeyDescription(
        name=f"{prefix}{name}",
        type=_type_in_words(found),
        limits=_limits_in_words(found),
        choices=tuple(found.get("enum", ())),
        default=found.get("default"),
        text=found.get("description", ""),
        examples=tuple(found.get("examples", ())),
        marks=marks,
    )


@cache
def json_schema() -> JsonSchema:
    """JSON schema (draft 2020-12) of a configuration file, sections in place; an editor completes and checks by it."""
    top = _inlined(Config)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "shadowlab configuration",
        **top,
        "properties": {"base": _BASE, **top["properties"]},
    }


def _inlined(section: type[Section]) -> JsonSchema:
    schema = section.model_json_schema()
    return _cleaned(schema, schema.pop("$defs", {}))


def _cleaned(schema: JsonSchema, sections: JsonSchema) -> JsonSchema:
    """`schema` without titles, with sections in place of references, descriptions on one line and marks in words."""
    if "$ref" in schema:
        return _cleaned(sections[schema["$ref"].rpartition("/")[2]], sections)
    kept = {name: value for name, value in schema.items() if name not in ("title", "shadowlab", "properties")}
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "properties" in schema:
        kept["properties"] = {name: _cleaned(one, sections) for name, one in schema["properties"].items()}
    return kept


def _properties(schema: JsonSchema) -> dict[str, JsonSchema]:
    return schema["properties"]


def _type_in_words(schema: JsonSchema) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_in_words(one) for one in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if schema.get("type") == "array":
        return f"list of {_type_in_words(schema['items'])}"
    return {"object": "mapping", "boolean": "true or false"}.get(schema["type"], str(schema["type"]))


def _limits_in_words(schema: JsonSchema) -> str:
    return ", ".join(_limits(schema))


def _limits(schema: JsonSchema) -> Iterator[str]:
    words = {
        "exclusiveMinimum": "greater than {}",
        "minimum": "at least {}",
        "exclusiveMaximum": "less than {}",
        "maximum": "at most {}",
        "multipleOf": "a multiple of {}",
        "minItems": "at least {} of them",
    }
    for name, text in words.items():
        if name in schema:
            yield text.format(f"{schema[name]:g}")
    for inner in schema.get("anyOf", ()):
        yield from _limits(inner)
    if "items" in schema:
        yield from (f"each {limit}" for limit in _limits(schema["items"]))
