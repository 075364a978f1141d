"""The floating-point event and its cause, from the operands of the operator in which a value was born."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diagnostics.ranks import num_ranks
from diagnostics.tensors import is_inexact
from diagnostics.tracing.bad_values import BadValues
from diagnostics.tracing.calls import OperatorCall, widened
from diagnostics.tracing.expression import Expression, issuing_expression
from diagnostics.tracing.nested import tensor_leaves
from diagnostics.tracing.operands import NO_REFERENCE, Operands
from diagnostics.tracing.operators import Operator, is_arithmetic, operator
from diagnostics.tracing.recomputation import Recorder
from diagnostics.tracing.step_context import Place
from diagnostics.tracing.zero import Rounded

# Position of the operand that must not be zero.
_DENOMINATORS = {"div": 1, "div_": 1, "true_divide": 1, "reciprocal": 0, "reciprocal_": 0, "log": 0, "log_": 0}
_DENOMINATORS |= {"log2": 0, "log10": 0, "rsqrt": 0, "rsqrt_": 0, "pow": 0, "pow_": 0, "addcdiv": 2, "addcdiv_": 2}
_DENOMINATORS |= {"log1p": 0, "remainder": 1, "fmod": 1, "xlogy": 1, "logit": 0}
# Their results grow with their operands; where others return infinity in float64, too, there is a pole.
_GROWING = {"exp", "exp2", "expm1", "sinh", "cosh", "pow", "mul", "add", "sub", "rsub", "square", "addcmul", "lerp"}
_GROWING |= {"ldexp", "special_i0", "special_i1", "logcumsumexp", "cumprod"}
# A row of nothing but -inf has no logarithm of a sum, though -inf is what these return.
EMPTY_LOGARITHMS = ("logsumexp", "logcumsumexp", "logaddexp", "logaddexp2")
_SOFTMAXES = {"_softmax", "_log_softmax", "_safe_softmax", "logsumexp", "_softmax_backward_data"}
_ATTENTION = "scaled_dot_product"
_SPREADS = {"std", "var", "std_mean", "var_mean"}
_SQUARES = {"linalg_vector_norm", "norm", "_foreach_norm", "native_layer_norm", "native_group_norm"}
_SQUARES |= {"native_batch_norm", "mse_loss", "_fused_rms_norm"} | _SPREADS


@dataclass(frozen=True)
class Judgement:
    """Exception and cause as in a verdict."""

    exception: str | None
    cause: str
    operands: dict[str, Any] = field(default_factory=dict)
    """Their values at the first bad index, by name: numbers, or a text for a tensor that has no such index."""
    denominator: str | None = None
    """The operand that must not be zero and is; by its name in the operator's schema."""
    rounded: tuple[Rounded, ...] = ()
    """How that became zero, where it is not in float64."""
    storages: dict[str, int] = field(default_factory=dict)
    """Keys of the storages of the operands, by name."""
    expression: Expression | None = None
    """What issued the operator; None in a backward pass, where no code does."""


def judge(
    call: OperatorCall,
    values: BadValues,
    place: Place,
    recorder: Recorder,
    *,
    is_turned: bool,
    asks_zeros: bool = False,
) -> Judgement:
    """What happened in an operator that has just returned harmful values from operands without any.

    Reads operands where they lie, so it must run before the next operator does.

    Args:
        is_turned: an operand holds a legitimate infinity.
        asks_zeros: whether to follow a denominator that is 0 back to what rounded; several times the work.
    """
    op = operator(call.func)
    if op.is_empty:
        return Judgement(None, "uninitialized")
    operands = Operands(call, values, recorder)
    case = _Case(op, values, operands, is_turned)
    scalars = operands.scalars
    computes = place.in_model or place.in_backward or place.milestone in ("start", "model")
    if any(math.isnan(v) for v in scalars):  # put into activations it stands for a kernel; computed with, for a rate
        puts = not is_arithmetic(op.name) and (place.in_model or place.in_backward)
        return Judgement(None, "kernel" if puts else "bad_scalar", operands.by_name())
    if any(math.isinf(v) for v in scalars) and (not computes or (is_arithmetic(op.name) and math.isinf(case.value))):
        return Judgement(None, "bad_scalar", operands.by_name())
    if op.is_collective:  # never run again: the other ranks would not take part
        return case.collective()
    if op.namespace not in ("aten", "prims"):
        return case.foreign()
    if op.name in _SOFTMAXES or _ATTENTION in op.name:
        found = case.softmax()
        if found is not None:
            return found
    if op.name.startswith(("_fused_adam_", "_fused_adamw_", "_fused_adagrad_")):
        return case.fused()
    if not op.is_elementwise:
        return case.whole()
    expression = None if place.in_backward and not place.in_hook else issuing_expression(call.func)
    found = replace(case.elementwise(), storages=operands.storages(), expression=expression)
    position = case.zero_position()
    if position is None or found.exception is None:
        return found
    name = call.func._schema.arguments[position].name
    return replace(found, denominator=name, rounded=operands.how_it_became_zero(position) if asks_zeros else ())


def _is_negative(number: object) -> bool:
    return isinstance(number, (int, float, complex)) and complex(number).real < 0


@dataclass
class _Case:
    """One operator with harmful results."""

    op: Operator
    seen: BadValues
    operands: Operands
    is_turned: bool

    @property
    def name(self) -> str:
        return self.op.name.removeprefix("_foreach_")

    @property
    def dtype_max(self) -> float:
        dtype = self.seen.dtype
        if dtype is None or not (dtype.is_floating_point or dtype.is_complex):
            return math.inf
        return torch.finfo(dtype).max

    @property
    def value(self) -> float:
        return float(self.seen.value)

    # Kinds of operators

    def foreign(self) -> Judgement:
        """A custom operator: nothing is known of it but what it returned."""
        try:
            number = float(self.operands.result())
        except NO_REFERENCE:
            number = math.nan
        if math.isinf(self.value) and math.isfinite(number) and abs(number) > self.dtype_max:
            return Judgement("overflow", "overflow", self.operands.by_name() | {"in float64": number})
        return Judgement(None, "kernel", self.operands.by_name())

    def collective(self) -> Judgement:
        """Finite here before, bad after: another rank's values, or a sum beyond the dtype."""
        tensors = self.operands.inexact
        largest = max((float(widened(t).abs().max()) for t in tensors if t.numel()), default=0.0)
        if math.isfinite(largest) and largest * num_ranks() > self.dtype_max:
            return Judgement("overflow", "overflow", {"largest magnitude": largest, "ranks": num_ranks()})
        return Judgement(None, "other_rank", {"largest magnitude before": largest})

    def softmax(self) -> Judgement | None:
        """A row whose every entry is -inf."""
        for tensor in tensor_leaves(self.operands.args):
            if is_inexact(tensor) and tensor.ndim and bool((tensor == -math.inf).all(-1).any()):
                return Judgement("invalid", "masked_row", {"row": "all -inf"})
        for tensor in self.operands.tensors:
            if tensor.dtype is torch.bool and tensor.ndim > 1 and bool((~tensor).all(-1).any()):
                return Judgement("invalid", "masked_row", {"row": "all False"})
        return None

    def elementwise(self) -> Judgement:
        operands = self.operands.by_name()
        reference = self.operands.result_at_index()
        if reference is not None and math.isfinite(reference):
            return self._finite_reference(reference, operands)
        infinite = [v for v in self.operands.numbers() if math.isinf(v)]
        zero = self.zero_position()
        if self.seen.dtype is not None and self.seen.dtype.is_complex:
            return self._complex(zero, operands)
        if math.isnan(self.value):
            if zero is not None:
                return Judgement("invalid", self._why_zero(zero), operands)
            if self.name in ("sub", "sub_") and infinite and all(v == -math.inf for v in infinite[:2]):
                return Judgement("invalid", "masked_row", operands)  # a row of masks less its own maximum
            if self.is_turned or infinite:
                return Judgement("invalid", "out_of_domain", operands)
            if reference is None and self._intermediate() > self.dtype_max:
                return Judgement("overflow", "overflow", operands)
            return Judgement("invalid", "out_of_domain", operands)
        if zero is not None:
            return Judgement("divide_by_zero", self._why_zero(zero), operands)
        if infinite:
            return Judgement(None, "bad_scalar", operands)
        if reference is not None and self.name.rstrip("_") not in _GROWING:
            return Judgement("divide_by_zero", "out_of_domain", operands)
        return Judgement("overflow", "overflow", operands)

    def _complex(self, zero: int | None, operands: dict[str, Any]) -> Judgement:
        """Complex results say less: at a pole all parts are NaN, and so they are where a square overflows."""
        numbers = [complex(v) for v in operands.values() if isinstance(v, (int, float, complex))]
        if any(not (math.isfinite(v.real) and math.isfinite(v.imag)) for v in numbers):
            return Judgement("invalid", "out_of_domain", operands)
        if zero is not None:
            numerator = 1.0 if zero == 0 or not numbers else numbers[0]  # of a logarithm or a reciprocal there is none
            is_pole = numerator != 0 and (self.name.rstrip("_") != "pow" or _is_negative(operands.get("exponent")))
            return Judgement("divide_by_zero" if is_pole else "invalid", self._why_zero(zero), operands)
        if self.name.rstrip("_") in _GROWING or self.name.rstrip("_") == "div":
            return Judgement("overflow", "overflow", operands)
        return Judgement("divide_by_zero", "out_of_domain", operands)

    def _finite_reference(self, reference: float, operands: dict[str, Any]) -> Judgement:
        """The operator's own operands give a finite result in float64."""
        operands = operands | {"in float64": reference}
        rounded_to_infinity = abs(reference) > self.dtype_max or not math.isfinite(self._rounded(reference))
        if rounded_to_infinity or self._intermediate() > self.dtype_max:
            return Judgement("overflow", "overflow", operands)
        scalars = [v for v in self.operands.args if isinstance(v, float)]
        if any(v != 0 and self._rounded(v) == 0 for v in scalars):  # a scalar such as eps vanishes in this dtype
            return Judgement("divide_by_zero" if math.isinf(self.value) else "invalid", "underflow", operands)
        return Judgement(None, "kernel", operands)

    def _rounded(self, number: float) -> float:
        return float(torch.tensor(number, dtype=torch.float64).to(self.seen.dtype))

    def _intermediate(self) -> float:
        """A bound for what the operator forms on its way."""
        numbers = [abs(v) for v in self.operands.numbers() if v != 0]
        product = math.prod(max(v, 1.0) for v in numbers)
        quotients = [a / b for a in numbers for b in numbers if self.name.startswith("addcdiv") and b > 0]
        return max([product, 2 * max(numbers, default=0.0), *quotients])

    def zero_position(self) -> int | None:
        """Position of the operand that must not be zero and is."""
        position = _DENOMINATORS.get(self.name)
        if position is None:
            return None
        value = self.operands.argument(position)
        number = self.operands.at_index(value).item() if isinstance(value, Tensor) else value
        pole = -1.0 if self.name == "log1p" else 0.0
        return position if isinstance(number, (int, float, complex)) and number == pole else None

    def _why_zero(self, position: int) -> str:
        """Why the operand at `position` is zero: by rounding, by an empty selection, or in fact."""
        exact = self.operands.exact(position)
        if exact is not None and exact != 0 and self.name != "log1p":
            return "underflow"
        is_empty = self.operands.counts_nothing(position, is_whole_enough=math.isnan(self.value))
        return "empty_reduction" if is_empty else "out_of_domain"

    def whole(self) -> Judgement:
        """Reductions, products, normalisations: the whole operator again in float64."""
        operands = self.operands.by_name()
        empty = self._empty_reduction()
        if empty is not None:
            return Judgement("invalid", "empty_reduction", operands | empty)
        try:
            number = float(self.operands.result().real)
        except NO_REFERENCE:
            return self._without_reference(operands)
        if math.isfinite(number):
            operands |= {"in float64": number}
            if abs(number) > self.dtype_max or not math.isfinite(self._rounded(number)):
                return Judgement("overflow", "overflow", operands)
            if self._may_overflow():
                return Judgement(
                    "overflow", "overflow", operands | {"on the way": "a sum or product exceeds the dtype"}
                )
            return Judgement(None, "kernel", operands)
        if math.isnan(self.value) and not self._may_overflow():
            return Judgement("invalid", "out_of_domain", operands)
        if math.isinf(number) and not self._may_overflow():  # a division inside: a singular matrix
            return Judgement("divide_by_zero", "out_of_domain", operands)
        return Judgement("overflow", "overflow", operands)

    def _without_reference(self, operands: dict[str, Any]) -> Judgement:
        if math.isinf(self.value) or self._may_overflow():
            return Judgement("overflow", "overflow", operands)
        return Judgement(None, "kernel", operands)

    def _may_overflow(self) -> bool:
        """Whether a product or sum inside the operator may exceed the dtype, though the result does not."""
        tensors = self.operands.inexact
        if not tensors:
            return False
        largest = [float(widened(t).abs().max()) for t in tensors if t.numel()]
        if self.name in _SQUARES:
            return max(largest) ** 2 * max(t.numel() for t in tensors) > self.dtype_max
        length = max(t.shape[-1] if t.ndim else 1 for t in tensors)
        top = sorted(largest)[-2:]
        return math.prod(max(v, 1.0) for v in top) * length > self.dtype_max

    def _empty_reduction(self) -> dict[str, Any] | None:
        args = self.operands.args
        tensors = tensor_leaves(args)
        if tensors and tensors[0].numel() == 0 and math.isnan(self.value):  # mean, mse_loss, any average
            return {"elements": 0}
        if "batch_norm" in self.name and "backward" not in self.name and self._has_one_value_a_channel(tensors[0]):
            return {"elements of a channel": 1}
        if self.name in _SPREADS and tensors:
            size = max(1, torch.Size(self.seen.shape).numel())
            count = tensors[0].numel() // size
            if count <= 1 or tensors[0].numel() == 0:
                return {"elements": count}
        if self.name.startswith("nll_loss") and len(args) > 1:
            ignored = next((v for v in reversed(args) if isinstance(v, int) and not isinstance(v, bool)), -100)
            target = args[1] if "backward" not in self.name else args[2]
            if bool((target == ignored).all()):
                return {"targets": "all ignored"}
            weight = args[2] if "backward" not in self.name else args[3]
            if isinstance(weight, Tensor) and float(weight[target[target != ignored]].abs().sum()) == 0:
                return {"targets": "their class weights are all 0"}
        return None

    def _has_one_value_a_channel(self, values: Tensor) -> bool:
        """Whether a batch norm updates its running variance from one value of each channel, with n - 1 = 0."""
        in_running = self.seen.slot > 0 and math.isnan(self.value)
        return in_running and values.ndim > 1 and values.numel() == values.shape[1]

    def fused(self) -> Judgement:
        """One operator for all parameters: the denominator is inside."""
        eps = self.operands.kwargs.get("eps")
        if isinstance(eps, float) and self._rounded(eps) == 0:
            return Judgement("divide_by_zero" if math.isinf(self.value) else "invalid", "underflow", {"eps": eps})
        return Judgement("overflow", "overflow", {"eps": eps})
