"""How a key of the configuration is declared.

A key stands in a `Section` with its default, what it decides, its command-line option, and its text below it:

    learning_rate: LearningRate = key(1e-5, decides="rate")
    \"\"\"Step size of AdamW after warm-up.\"\"\"

What may change on resume, what enters the model hash, the options of the commands, the JSON schema and the pages of
the documentation are all derived from there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

Decides = Literal["model", "numbers", "rate", "cosine_end", "batch", "nothing"]
"""What another value of a key would change.

- `model`: which model it is. The key enters the model hash, so that stages have to pass again, and a resumed run must
  keep it.
- `numbers`: the weights that come out. A resumed run must keep it.
- `rate`: the learning rate of the steps to come. A resumed run may take another one, which is said and recorded.
- `cosine_end`: the same as `rate` where the learning rate falls along a cosine, which ends there; else nothing.
- `batch`: one factor of the effective batch. A resumed run must keep the product.
- `nothing`: at most the last bits; it may change at any time.
"""

_MARKS = "shadowlab"  # where a field keeps its marks, in what pydantic calls json_schema_extra


@dataclass(frozen=True)
class Marks:
    """What is declared with a key, other than its type and default."""

    decides: Decides
    option: str | None = None
    """Option of the commands that take this key alone, `--max-steps`; a flag with both forms is `--on/--off`."""
    hashed_if_changed: bool = False
    """With `decides="model"`: enter the hash only where the value is not the default. For keys that are younger than
    the hashes in people's run folders."""


def key(
    default: Any,
    *,
    decides: Decides,
    option: str | None = None,
    hashed_if_changed: bool = False,
    examples: Sequence[Any] = (),
    **schema: Any,
) -> Any:
    """A key of a `Section`; its text stands below it, in a string of its own.

    Args:
        decides: see `Decides`.
        option: see `Marks`.
        hashed_if_changed: see `Marks`.
        examples: values for the documentation, where the default alone does not show what may be written.
        schema: further words of the JSON schema, such as minimum, where a validator checks what the type does not say.
    """
    if decides not in get_args(Decides):
        raise ValueError(f"decides={decides!r} is none of {', '.join(get_args(Decides))}")
    if hashed_if_changed and decides != "model":
        raise ValueError("hashed_if_changed says how a key enters the model hash: with decides='model' alone")
    marks = asdict(Marks(decides, option, hashed_if_changed))
    return Field(default, examples=list(examples) or None, json_schema_extra={_MARKS: marks, **schema})


def marks_of(field: FieldInfo) -> Marks | None:
    """The marks of a key; None where it was declared without."""
    extra = field.json_schema_extra
    marks = extra.get(_MARKS) if isinstance(extra, dict) else None
    return Marks(**marks) if isinstance(marks, dict) else None  # type: ignore[arg-type]


def section_of(field: FieldInfo | None) -> "type[Section] | None":
    """The section that a field holds, if it holds one and no value."""
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


class Section(BaseModel):
    """Unknown keys are errors, values are never changed after loading, and a key without marks or text is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, field in cls.model_fields.items():
            if section_of(field) is None and marks_of(field) is None:
                raise TypeError(f"{cls.__name__}.{name}: declare it with key(default, decides=...)")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation not in (bool, bool | None):
            raise ValueError("must not be true or false")
        return value


def leaves(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every key, in the order of their declaration."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield f"{prefix}{name}", field
        else:
            yield from leaves(section, f"{prefix}{name}.")


def values(config: BaseModel) -> dict[str, Any]:
    """Dotted name of every key to its value, as JSON has it. What a dictionary holds counts as keys of its own."""
    return dict(_flat(config.model_dump(mode="json"), ""))


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
