"""The floating-point event and its cause, from the operands of the operator in which a value was born."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diagnostics.ranks import num_ranks
from diagnostics.tensors import is_inexact
from diagnostics.tracing.events import Event
from diagnostics.tracing.nested import leaves
from diagnostics.tracing.operators import is_arithmetic, operator
from diagnostics.tracing.recomputation import Before, LostError, Recorder, element, run_in_float64, widened

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


@dataclass
class Judgement:
    """exception and cause as in a verdict. operands: values at the first bad index, by name."""

    exception: str | None
    cause: str
    operands: dict[str, Any] = field(default_factory=dict)


def judge(event: Event, call: Before, recorder: Recorder) -> Judgement:
    """What happened in an operator that has just returned harmful values from operands without any.

    Reads operands where they lie, so it must run before the next operator does.
    """
    if event.is_allocation:
        return Judgement(None, "uninitialized")
    op = operator(call.func)
    originals, (args, kwargs) = (call.args, call.kwargs), call.values()
    if op.is_foreach:
        originals, (args, kwargs) = element(*originals, event.slot), element(args, kwargs, event.slot)
    case = _Case(event, call, originals[0], args, kwargs, recorder)
    scalars = [v for v in leaves((args, kwargs)) if isinstance(v, float)]
    place = event.place
    computes = place is not None and (place.in_model or place.in_backward or place.milestone in ("start", "model"))
    if any(math.isnan(v) for v in scalars):  # put into activations it stands for a kernel; computed with, for a rate
        puts = computes and not is_arithmetic(op.name) and place is not None and (place.in_model or place.in_backward)
        return Judgement(None, "kernel" if puts else "bad_scalar", case.operands())
    if any(math.isinf(v) for v in scalars) and (not computes or (is_arithmetic(op.name) and math.isinf(case.value))):
        return Judgement(None, "bad_scalar", case.operands())
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
    return case.elementwise() if op.is_elementwise else case.whole()


@dataclass
class _Case:
    event: Event
    call: Before
    originals: Any
    args: Any
    kwargs: Any
    recorder: Recorder

    @property
    def name(self) -> str:
        return operator(self.call.func).name.removeprefix("_foreach_")

    @property
    def dtype_max(self) -> float:
        dtype = self.event.dtype
        return torch.finfo(dtype).max if dtype is not None and dtype.is_floating_point else math.inf

    @property
    def value(self) -> float:
        return float(self.event.value)

    # Operands

    def at_index(self, tensor: Tensor) -> Tensor:
        """The element of an operand that meets the first bad element, after broadcasting."""
        return tensor.expand(self.event.shape)[self.event.index] if self.event.shape else tensor.reshape(())

    def operands(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for argument, value in zip(self.call.func._schema.arguments, self.args, strict=False):
            found |= self._operand(argument.name, value)
        for name, value in self.kwargs.items():
            found |= self._operand(name, value)
        return found

    def _operand(self, name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Tensor):
            try:
                number = self.at_index(value)
            except (RuntimeError, IndexError):
                if not is_inexact(value) or not value.numel():
                    return {name: f"{tuple(value.shape)}"}
                finite = value[torch.isfinite(value)].abs()
                largest = f"{float(finite.max()):.6g}" if finite.numel() else "none finite"
                return {name: f"{tuple(value.shape)}, largest magnitude {largest}"}
            return {name: complex(number) if number.is_complex() else number.item()}
        return {name: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}

    def numbers(self) -> list[float]:
        return [float(v) for v in self.operands().values() if isinstance(v, (int, float))]

    def argument(self, position: int) -> Any:
        value = self.args[position] if position < len(self.args) else None
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def exact(self, position: int) -> float | None:
        """A tensor operand in float64 at the bad index; None where it is lost."""
        value = self.argument(position)
        if not isinstance(value, Tensor):
            return float(value) if isinstance(value, (int, float)) else None
        original = self.original(position)
        try:
            return float(self.at_index(self.recorder.exact_argument(self.call, original)).real)
        except (LostError, RuntimeError):
            return None

    def original(self, position: int) -> Any:
        """The argument itself; `argument` is its content before the call."""
        value = self.originals[position] if position < len(self.originals) else None
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    # Kinds of operators

    def foreign(self) -> Judgement:
        """A custom operator: nothing is known of it but what it returned."""
        try:
            reference = run_in_float64(self.call.func, self.args, self.kwargs)[self.event.slot]
            number = float(reference[self.event.index]) if self.event.shape else float(reference)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            number = math.nan
        if math.isinf(self.value) and math.isfinite(number) and abs(number) > self.dtype_max:
            return Judgement("overflow", "overflow", self.operands() | {"in float64": number})
        return Judgement(None, "kernel", self.operands())

    def collective(self) -> Judgement:
        """Finite here before, bad after: another rank's values, or a sum beyond the dtype."""
        tensors = [t for t in leaves((self.args, self.kwargs)) if isinstance(t, Tensor) and is_inexact(t)]
        largest = max((float(widened(t).abs().max()) for t in tensors if t.numel()), default=0.0)
        if math.isfinite(largest) and largest * num_ranks() > self.dtype_max:
            return Judgement("overflow", "overflow", {"largest magnitude": largest, "ranks": num_ranks()})
        return Judgement(None, "other_rank", {"largest magnitude before": largest})

    def softmax(self) -> Judgement | None:
        """A row whose every entry is -inf."""
        for tensor in (t for t in leaves(self.args) if isinstance(t, Tensor) and is_inexact(t)):
            if tensor.ndim and bool((tensor == -math.inf).all(-1).any()):
                return Judgement("invalid", "masked_row", {"row": "all -inf"})
        for tensor in (t for t in leaves((self.args, self.kwargs)) if isinstance(t, Tensor)):
            if tensor.dtype is torch.bool and tensor.ndim > 1 and bool((~tensor).all(-1).any()):
                return Judgement("invalid", "masked_row", {"row": "all False"})
        return None

    def elementwise(self) -> Judgement:
        operands = self.operands()
        reference = self._scalar_reference()
        if reference is not None and math.isfinite(reference):
            return self._finite_reference(reference, operands)
        infinite = [v for v in self.numbers() if math.isinf(v)]
        zero = self._zero_denominator()
        if math.isnan(self.value):
            if zero is not None:
                return Judgement("invalid", self._why_zero(zero), operands)
            if self.name in ("sub", "sub_") and infinite and all(v == -math.inf for v in infinite[:2]):
                return Judgement("invalid", "masked_row", operands)  # a row of masks less its own maximum
            if self.event.turned or infinite:
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

    def _finite_reference(self, reference: float, operands: dict[str, Any]) -> Judgement:
        """The operator's own operands give a finite result in float64."""
        operands = operands | {"in float64": reference}
        rounded_to_infinity = abs(reference) > self.dtype_max or not math.isfinite(self._rounded(reference))
        if rounded_to_infinity or self._intermediate() > self.dtype_max:
            return Judgement("overflow", "overflow", operands)
        scalars = [v for v in self.args if isinstance(v, float)]
        if any(v != 0 and self._rounded(v) == 0 for v in scalars):  # a scalar such as eps vanishes in this dtype
            return Judgement("divide_by_zero" if math.isinf(self.value) else "invalid", "underflow", operands)
        return Judgement(None, "kernel", operands)

    def _rounded(self, number: float) -> float:
        return float(torch.tensor(number, dtype=torch.float64).to(self.event.dtype))

    def _intermediate(self) -> float:
        """A bound for what the operator forms on its way."""
        numbers = [abs(v) for v in self.numbers() if v != 0]
        product = math.prod(max(v, 1.0) for v in numbers)
        quotients = [a / b for a in numbers for b in numbers if self.name.startswith("addcdiv") and b > 0]
        return max([product, 2 * max(numbers, default=0.0), *quotients])

    def _scalar_reference(self) -> float | None:
        """The operator on its operands at the bad index, in float64."""

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.at_index(value).clone()
            return [pick(item) for item in value] if isinstance(value, list) else value

        try:
            args = [pick(value) for value in self.args]
            kwargs = {key: pick(value) for key, value in self.kwargs.items()}
            outputs = run_in_float64(self.call.func, args, kwargs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            return None
        output = outputs[0 if operator(self.call.func).is_foreach else self.event.slot]
        return None if output.is_complex() else float(output.reshape(-1)[0])

    def _zero_denominator(self) -> int | None:
        position = _DENOMINATORS.get(self.name)
        if position is None:
            return None
        value = self.argument(position)
        number = self.at_index(value).item() if isinstance(value, Tensor) else value
        pole = -1.0 if self.name == "log1p" else 0.0
        return position if isinstance(number, (int, float)) and number == pole else None

    def _why_zero(self, position: int) -> str:
        """Why the operand at `position` is zero: by rounding, by an empty selection, or in fact."""
        exact = self.exact(position)
        if exact is not None and exact != 0 and self.name != "log1p":
            return "underflow"
        original = self.original(position)
        if isinstance(original, Tensor):
            terms = self.recorder.num_summed(self.call, original)
            if terms is not None and float(self.at_index(terms)) == 0:
                return "empty_reduction"
        return "out_of_domain"

    def whole(self) -> Judgement:
        """Reductions, products, normalisations: the whole operator again in float64."""
        operands = self.operands()
        empty = self._empty_reduction()
        if empty is not None:
            return Judgement("invalid", "empty_reduction", operands | empty)
        try:
            outputs = run_in_float64(self.call.func, self.args, self.kwargs)
            reference = outputs[0 if operator(self.call.func).is_foreach else self.event.slot]
            number = float((reference[self.event.index] if self.event.shape else reference).real)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
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
        if math.isnan(self.value):
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
        tensors = [t for t in leaves((self.args, self.kwargs)) if isinstance(t, Tensor) and is_inexact(t)]
        if not tensors:
            return False
        largest = [float(widened(t).abs().max()) for t in tensors if t.numel()]
        if self.name in _SQUARES:
            return max(largest) ** 2 * max(t.numel() for t in tensors) > self.dtype_max
        length = max(t.shape[-1] if t.ndim else 1 for t in tensors)
        top = sorted(largest)[-2:]
        return math.prod(max(v, 1.0) for v in top) * length > self.dtype_max

    def _empty_reduction(self) -> dict[str, Any] | None:
        tensors = [t for t in leaves(self.args) if isinstance(t, Tensor)]
        if self.name in ("mean", "nanmean") and tensors and tensors[0].numel() == 0:
            return {"elements": 0}
        if self.name in _SPREADS and tensors:
            size = max(1, torch.Size(self.event.shape).numel())
            count = tensors[0].numel() // size
            if count <= 1 or tensors[0].numel() == 0:
                return {"elements": count}
        if self.name.startswith("nll_loss") and len(self.args) > 1:
            ignored = next((v for v in reversed(self.args) if isinstance(v, int) and not isinstance(v, bool)), -100)
            target = self.args[1] if "backward" not in self.name else self.args[2]
            if bool((target == ignored).all()):
                return {"targets": "all ignored"}
            weight = self.args[2] if "backward" not in self.name else self.args[3]
            if isinstance(weight, Tensor) and float(weight[target[target != ignored]].abs().sum()) == 0:
                return {"targets": "their class weights are all 0"}
        return None

    def fused(self) -> Judgement:
        """One operator for all parameters: the denominator is inside."""
        eps = self.kwargs.get("eps")
        if isinstance(eps, float) and self._rounded(eps) == 0:
            return Judgement("divide_by_zero" if math.isinf(self.value) else "invalid", "underflow", {"eps": eps})
        return Judgement("overflow", "overflow", {"eps": eps})
