"""What advice is given on: an origin with all that is known of it, and the words of literal code."""

import ast
import linecache
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import Judgement
from diagnostics.tracing.making import Making

_TORCH = f"{Path(torch.__file__).resolve().parent}/"
_LEAST = {torch.float16: 1e-3}  # an epsilon whose inverse, cubed even, half precision can nearly hold
_MARGIN = {torch.float16: 1e-3, torch.bfloat16: 1e-2}  # next to 1; the last number below it is within


@dataclass(frozen=True)
class Keeping:
    """How a model keeps a tensor."""

    is_trained: bool = False
    is_saved: bool = False
    """A checkpoint holds it."""
    is_running: bool = False
    """It is a statistic that a normalisation updates."""
    rate: float | None = None
    """Learning rate that its optimizer steps it with; None where that is unknown."""
    eps: float | None = None
    """Its optimizer's."""


@dataclass(frozen=True)
class Birth:
    """An origin that is an operator or a leaf."""

    event: Event
    phase: str
    judgement: Judgement
    making: Making
    added: Sequence[float]
    """Numbers that were added to a denominator that is 0 all the same, such as an eps."""
    after: frozenset[str]
    """Operators that computed with its bad values, and those that computed with theirs; plain names."""
    from_mask: bool
    """Its value comes from an infinity that is meant, such as that of a mask."""
    from_infinity: bool = False
    """Its value comes from an infinity that was there before, of a mask or of a number that nobody looked at."""
    keeping: Keeping | None = None
    """Of a parameter, buffer or attribute: how it is kept; None of anything else."""

    @property
    def counts_from_zero(self) -> bool:
        """Whether a fused optimizer's step counter is 0 or less, of which its correction makes a denominator of 0."""
        call = self.event.examination.call
        if call is None or not self.op.startswith("fused_ada"):
            return False
        names = [argument.name for argument in call.func._schema.arguments]
        steps = call.args[names.index("state_steps")] if "state_steps" in names else []
        return any(float(step) <= 0 for step in steps)

    @property
    def op(self) -> str:
        """Plain name of the operator."""
        return plain(self.event.op)

    @property
    def node(self) -> str:
        """What a backward operator differentiates, in lower case without its number (`sqrt`); "" in forward."""
        place = self.event.place
        name = place.node if place is not None and self.phase == "backward" else None
        return (name or "").rpartition("::")[2].partition("Backward")[0].lower()

    @property
    def dtype(self) -> torch.dtype:
        """Of the bad tensor; float32 where nobody looked."""
        return self.event.values.dtype or torch.float32

    @property
    def is_half(self) -> bool:
        """Whether its range is that of float16."""
        return self.dtype is torch.float16

    @property
    def is_library(self) -> bool:
        """Whether one of torch's optimizers issued it."""
        expression = self.judgement.expression
        return expression is not None and "/torch/optim/" in expression.source

    @property
    def in_torch(self) -> bool:
        """Whether torch's own Python code issued it, whose operands the user does not write."""
        expression = self.judgement.expression
        if expression is None or "/torch/_tensor.py" in expression.source:  # `1 / x` is a method there
            return False
        return expression.source.startswith(_TORCH)

    @property
    def code(self) -> str:
        """The expression that issued it, "" where that is not known."""
        return "" if self.judgement.expression is None else self.judgement.expression.text

    @property
    def line(self) -> str:
        """The user's line that issued it, "" where it is not known."""
        path, _, number = ((self.event.place and self.event.place.source) or "").rpartition(":")
        return linecache.getline(path, int(number)) if number.isdigit() else ""

    def called(self, operand: str, otherwise: str) -> str:
        """What stands in the code for an operand, as something to which `.clamp` can be put."""
        expression = self.judgement.expression
        is_own = expression is not None and not expression.source.startswith(_TORCH)
        text = otherwise if expression is None or not is_own else expression.names.get(operand, otherwise)
        return text if len(text) <= 40 and "\n" not in text else otherwise

    @property
    def least(self) -> float:
        """An epsilon for its operand: small next to what is there, large enough for this dtype and its inverse."""
        default = _LEAST.get(self.dtype, 1e-6)
        typical = self.making.typical
        if typical is None or self.is_half or typical > 1e3 * default:
            return default
        return float(max(10.0 ** math.floor(math.log10(typical / 1e3)), 1e-20))

    @property
    def margin(self) -> float:
        """What keeps an operand away from 1."""
        return _MARGIN.get(self.dtype, 1e-6)


def plain(op: str) -> str:
    """`div` of `_foreach_div_`."""
    return op.removeprefix("_foreach_").strip("_")


def method(text: str, call: str) -> str:
    """`text.call`, with brackets where the text needs them."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return f"x.{call}"
    simple = isinstance(tree, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return f"{text}.{call}" if simple else f"({text}).{call}"


def number(value: float) -> str:
    """`1e-6`, not `1e-06`."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
