"""What `explain` says: one non-finite value's origin, for people and for machines."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diagnostics.files import read_json, reason_of

PHASES = {
    "state": "a weight, buffer or optimizer state was bad before the step",
    "data": "before the model saw it",
    "forward": "inside the model's call",
    "loss": "between the model and backward",
    "backward": "while gradients flowed back",
    "unscale": "while the loss scale was taken out of the gradients",
    "reduce": "while gradients were added up over processes",
    "clip": "while gradients were clipped",
    "optimizer": "while the weights were updated",
    "ema": "while the weights were averaged",
    "checkpoint": "while a checkpoint was written",
}
"""When in a step a value was born, in the order of a step: name -> meaning.

A parameter, gradient, buffer or optimizer state that was bad before the step is `state`; an input tensor that was, or
was made so before the model saw it, is `data`. `reduce` is a collective over processes, `ema` any average of weights.
"""

EXCEPTIONS = {
    "invalid": "invalid operation: there is no such number",
    "divide_by_zero": "division by zero, or a pole",
    "overflow": "overflow: beyond the largest finite number",
}
"""The IEEE 754 event at a birth: name -> meaning.

`invalid`: 0/0, inf - inf, 0 * inf, sqrt(-1), log(-1). `divide_by_zero`: x/0, log 0, rsqrt 0, poles of complex functions
too. `overflow`: a finite result beyond the dtype's largest value.
"""

CAUSES = {
    "overflow": "the result is beyond the largest finite value of this dtype",
    "underflow": "a value that is not zero was rounded to zero in this dtype (an epsilon, a square, a denominator)",
    "out_of_domain": "an operand lies outside the operator's domain, or on its pole",
    "empty_reduction": "an average over nothing: no element, no selected element, or too few for the correction",
    "masked_row": "every entry of a row is masked (-inf), so that nothing is left to normalise",
    "bad_data": "an input was bad before the step computed anything with it",
    "bad_state": "a parameter, buffer, gradient or optimizer state was bad before the step",
    "bad_scalar": "a number handed to the operator (a learning rate, a scale, a weight) is NaN or Inf",
    "uninitialized": "memory was read before anything was written to it",
    "other_rank": "another rank brought it in through a collective",
    "kernel": "operands and a float64 reference are finite and moderate: the operator's implementation is at fault",
    "unknown": "the value was written where no operator was seen (a custom extension, NumPy, another process)",
}
"""What lies behind an event: name -> meaning. A verdict's text quotes the meaning."""


_OF_OPERANDS = ("names", "roles", "expression", "expression_at", "zero", "why_zero")  # parts of a witness


@dataclass(frozen=True)
class Verdict:
    """The origin of the non-finite value that reached a sink. `str()` of it is the message for people.

    The origin is the first operator on the path to a sink whose outputs are not finite while its inputs are, or whose
    inputs are legitimate infinities (a mask) that it turned into the harmful value.
    """

    phase: str
    """When it was born: a key of `PHASES`."""

    exception: str | None
    """The event at the birth, a key of `EXCEPTIONS`; None where the value came in from outside the step's operators, or
    where the operator gives no reason (a kernel fault)."""

    cause: str
    """What lies behind it: a key of `CAUSES`."""

    op: str | None = None
    """Operator (`sqrt`); None where the value came in from outside."""

    module: str | None = None
    """Dotted name of the module that was running; "" for the root of the model, None outside it."""

    parameter: str | None = None
    """Name of the parameter, buffer, optimizer state (`first.weight.exp_avg`) or input that is concerned, if any."""

    source: str | None = None
    """`path:line` of the user's code that issued the operator, the caller's line where a library issued it; for an
    operator of the backward pass, the line of the forward call that it differentiates."""

    samples: tuple[int, ...] = ()
    """Indices along the batch dimension where it was born; none where there is no batch dimension."""

    sample_ids: tuple[str, ...] = ()
    """Ids of `samples`, where the batch names them."""

    value: str = "nan"
    """What was born: `nan`, `inf` or `-inf`."""

    witness: dict[str, Any] = field(default_factory=dict)
    """The proof, as JSON values: `index` of the first bad element in a tensor of `shape`, `operands` there (name ->
    value), `dtype` with its `limits`, and what else was seen, by name.

    Where they are known: `names` (operand -> what it is called: a parameter, its gradient or optimizer state, a tensor
    of the batch, else as the code has it) and `roles` (operand -> `numerator`, `denominator`, ...); `expression`, the
    code that issued the operator, and `expression_at`, its `path:line`, in torch where torch wrote it. Of a denominator
    that is 0 by rounding: `why_zero`, a sentence, and `zero`, the operators behind it, the one that rounded first at
    the beginning: each with `op`, `in_float64` (its result there), `dtype`, `operands` (name -> number) and `tensor`
    (what it wrote, where that has a name)."""

    path: tuple[str, ...] = ()
    """The operators from birth to sink."""

    fix: str = ""
    """What to change, in a sentence, with the public issue that documents it where there is one."""

    step: int | None = None
    """0-based number of the step; None where it is unknown."""

    rank: int | None = None
    """0-based rank where it was born; None in a single process."""

    reproducible: bool | None = None
    """Whether a repetition of the step gave it again; None where the step was not repeated."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps(..., allow_nan=False)` accepts: NaN and Inf are the strings of `value`."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Verdict":
        """Inverse of `to_json`, but numbers of the witness that are not finite stay strings."""
        tuples = {name: tuple(content.get(name) or ()) for name in ("samples", "sample_ids", "path")}
        return cls(**{**content, **tuples})

    def __str__(self) -> str:
        return "\n".join([self.headline(), *(f"  {label:<10}{text}" for label, text in self.details())])

    def headline(self) -> str:
        """One line: value, operator or leaf, phase, step and rank."""
        what = f"{self.value} was born in {self.op}" if self.op else f"{self.value} came in with {self._bearer()}"
        when = "" if self.step is None else f" of step {self.step + 1}"
        rank = "" if self.rank is None else f", rank {self.rank}"
        return f"{what}, phase {self.phase}{when}{rank}"

    def details(self) -> list[tuple[str, str]]:
        """Label and text of every line that stands below the headline."""
        return [(label, text) for label, text in self._lines() if text]

    @property
    def operands_where(self) -> str:
        """Index of the first bad element and the shape of its tensor, "" where the witness has none."""
        if "index" not in self.witness:
            return ""
        shape = f" of {self.witness['shape']}" if "shape" in self.witness else ""
        return f"at {self.witness['index']}{shape}"

    @property
    def dtype_text(self) -> str:
        """The number format in which the value was born, with its limits."""
        limits = self.witness.get("limits", {})
        reach = ", ".join(f"{name.replace('_', ' ')} {number_text(value)}" for name, value in limits.items())
        return ": ".join(filter(None, (self.witness.get("dtype"), reach)))

    @property
    def more_witness(self) -> list[tuple[str, str]]:
        """Label and text of what else the witness holds."""
        known = ("index", "shape", "dtype", "limits", "operands", *_OF_OPERANDS)
        return [
            (name.replace("_", " "), number_text(value)) for name, value in self.witness.items() if name not in known
        ]

    def operand_label(self, name: str) -> str:
        """What an operand is for and what it is called: `denominator denom`; its name in the operator's schema where
        neither is known."""
        role, called = (self.witness.get(key, {}).get(name, "") for key in ("roles", "names"))
        return " ".join(filter(None, (role, called))) or name

    @property
    def why_zero(self) -> str:
        """How a denominator became 0, "" where none did by rounding."""
        return str(self.witness.get("why_zero", ""))

    def _operands_text(self) -> str:
        """They are the proof."""
        operands, where = self.witness.get("operands", {}), self.operands_where
        text = ", ".join(f"{self.operand_label(name)} = {number_text(value)}" for name, value in operands.items())
        return f"{text} ({where})" if text else where

    def _bearer(self) -> str:
        """What brought a value in, in words."""
        if self.parameter is None:
            unnamed = "a tensor that `batch` does not name" if self.phase == "data" else "a value that has no name"
            return "a number in the code" if self.cause == "bad_scalar" else unnamed
        first, _, rest = self.parameter.partition(".")
        return (
            f"batch[{first}]{'.' if rest else ''}{rest}" if first.isdigit() and self.phase == "data" else self.parameter
        )

    def _lines(self) -> list[tuple[str, str]]:
        names = f" ({', '.join(self.sample_ids)})" if self.sample_ids else ""
        replay = {None: "", True: "yes, the same step gave it again", False: "no, the same step was finite"}
        place = "" if self.module is None else self.module or "the model itself, outside its children"
        return [
            ("module", place),
            ("parameter", self.parameter if self.parameter and self.op else ""),
            ("event", self.exception or ""),
            ("cause", f"{self.cause}: {CAUSES.get(self.cause, '')}"),
            ("source", nearby(self.source) if self.source else ""),
            ("samples", ", ".join(map(str, self.samples)) + names if self.samples else ""),
            ("operands", self._operands_text()),
            ("zero", self.why_zero),
            ("dtype", self.dtype_text),
            *self.more_witness,
            ("path", " -> ".join(self.path)),
            ("replayed", replay[self.reproducible]),
            ("fix", self.fix),
        ]


def read_verdict(content: object) -> Verdict | None:
    """The verdict that `to_json` wrote, in an incident's folder or in a record; None where it is missing or damaged.

    Fields that this version does not know are left out: a newer one wrote them.
    """
    if not isinstance(content, Mapping):
        return None
    known = {one.name for one in fields(Verdict)}
    kept = {key: value for key, value in content.items() if key in known}
    if not all(_is_sound(key, value) for key, value in kept.items()):
        return None
    try:
        verdict = Verdict.from_json(kept)
        str(verdict)  # a verdict without a text cannot be shown
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError):
        return None
    return verdict


def read_verdict_file(file: Path) -> Verdict:
    """The verdict.json of an incident.

    Raises:
        ValueError: it is missing, cannot be read, or is damaged; one line that names it.
    """
    try:
        verdict = read_verdict(read_json(file, inside=file.parent))
    except FileNotFoundError:
        raise ValueError(f"{file}: missing") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({reason_of(error)})") from error
    except ValueError as error:  # neither JSON nor UTF-8, or nested thousandfold
        said = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{file}: not a verdict ({said}); the file is damaged") from error
    if verdict is None:
        raise ValueError(f"{file}: not a verdict; the file is damaged")
    return verdict


def _is_sound(name: str, value: Any) -> bool:
    """Whether a field holds what its type says, as JSON has it."""
    if name in ("phase", "cause", "value", "fix"):
        return isinstance(value, str)
    if name in ("samples", "sample_ids", "path"):
        item_kind = int if name == "samples" else str
        return value is None or (isinstance(value, list | tuple) and all(_is(item_kind, item) for item in value))
    if name == "witness":
        parts = (
            [value.get(part, {}) for part in ("operands", "limits", "names", "roles")]
            if isinstance(value, dict)
            else [None]
        )
        return all(isinstance(part, dict) for part in parts) and isinstance(value.get("dtype"), str | None)
    kind = {"step": int, "rank": int, "reproducible": bool}.get(name, str)
    return value is None or _is(kind, value)


def _is(kind: type, value: Any) -> bool:
    """isinstance, but True is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def nearby(path: str | Path) -> str:
    """A path, or `path:line`, relative to the current folder where it lies below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # elsewhere; or the current folder was deleted
        return str(path)


def number_text(value: Any) -> str:
    """A number of the witness with six digits, more where those would hide that it is not whole."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    hides = float(short) != value and abs(value) < 1e5 and float(short).is_integer()
    return f"{value:.9g}" if hides else short  # 1.00000012 is not 1


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
