"""What an optimizer did that steps outside of what is watched: read from the numbers and states that it left.

The watch meets its work one step late, when a weight or a state is bad already. What the weight was before is gone; the
division that made it can be done again.
"""

import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.tensors import is_inexact, strided, wide
from diagnostics.verdict import Verdict
from diagnostics.watching.safety import eps_text, eps_vanishes
from diagnostics.watching.snapshot import bare

_NUMBERS = ("lr", "eps", "weight_decay", "momentum", "alpha", "rho", "betas", "lr_decay", "dampening")
_MEANS = ("exp_avg", "momentum_buffer", "grad_avg")
_SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")

WATCH_IT = """so that nothing bad is kept, let the watch see its step:
    for attempt in watch.attempts(batch=batch):
        with attempt:
            ...forward, backward...
            optimizer.step()
            optimizer.zero_grad()"""


def with_optimizer(verdict: Verdict, parameters: Mapping[str, nn.Parameter], optimizers: list[Any]) -> Verdict:
    """A verdict that a parameter or an optimizer state was bad before the step, with what the optimizer had done.

    Args:
        parameters: by name, any shape, as they are before the step.
        optimizers: those that are known; where there are none, one that holds the parameter is looked for.
    """
    name = verdict.parameter or ""
    owner = name if name in parameters else next((n for n in parameters if name.startswith(f"{n}.")), None)
    if verdict.phase != "state" or owner is None:
        return verdict
    for optimizer in optimizers or _holding(parameters[owner]):
        for group in getattr(optimizer, "param_groups", []):
            if any(parameter is parameters[owner] for parameter in group["params"]):
                states = getattr(optimizer, "state", {})
                return _Update(optimizer, group, states.get(parameters[owner], {}), parameters[owner]).told(verdict)
    seen = f"{owner} was written between two watched steps, by what this watch does not see"
    fix = f"if an optimizer does it, give it to the watch, and, {WATCH_IT}"
    return replace(verdict, witness={**verdict.witness, "outside": seen}, fix=fix)


def _holding(parameter: nn.Parameter) -> Iterator[Any]:
    """Optimizers of this process that train a parameter of any shape."""
    for one in gc.get_objects():
        if not issubclass(type(one), torch.optim.Optimizer):  # isinstance would ask the object
            continue
        if any(parameter is held for group in one.param_groups for held in group["params"]):
            yield one


@dataclass
class _Update:
    """The last update of one parameter."""

    optimizer: Any
    group: Mapping[str, Any]
    state: Mapping[str, Any]
    parameter: nn.Parameter

    def told(self, verdict: Verdict) -> Verdict:
        """The verdict with what is found."""
        kind = type(bare(self.optimizer)).__name__
        for look in (self._bad_number, self._division, self._moment, self._size):
            found = look(verdict)
            if found is not None:
                seen = f"optimizer {kind} stepped outside of the watched step: {found.witness['outside']}"
                return replace(found, witness={**found.witness, "outside": seen}, fix=f"{found.fix}; {WATCH_IT}")
        seen = f"optimizer {kind} stepped outside of the watched step and wrote this; its states do not show why"
        return replace(
            verdict, witness={**verdict.witness, "outside": seen}, fix=f"what {kind} did is not seen; {WATCH_IT}"
        )

    def _bad_number(self, verdict: Verdict) -> Verdict | None:
        for name in _NUMBERS:
            given = self.group.get(name)
            for value in given if isinstance(given, (tuple, list)) else (given,):
                number = float(value) if isinstance(value, (int, float)) or _is_scalar(value) else 0.0
                if not math.isfinite(number):
                    text = f"its {name} is {number:g}"
                    return _with(verdict, text, f"look at what sets {name}: a schedule that divides by 0 steps")
        return None

    def _division(self, verdict: Verdict) -> Verdict | None:
        """The update divides by the root of a second moment and eps: which of them is zero."""
        values, eps = _values(self.parameter), self.group.get("eps")
        name, second = self._first_of(_SQUARES)
        if values is None or second is None or second.shape != values.shape or not isinstance(eps, float):
            return None
        root = (second.sqrt() + eps).to(second.dtype)
        at = (~torch.isfinite(wide(values)) & (root == 0)).nonzero()
        if not len(at):
            return None
        index = tuple(at[0].tolist())
        mean_name, mean = self._first_of(_MEANS)
        above = math.nan if mean is None else float(mean[index])
        operands = {} if mean is None else {mean_name: above}
        operands |= {name: float(second[index]), "eps": eps, "denominator": 0.0}
        dtype = str(second.dtype).removeprefix("torch.")
        underflows = eps_vanishes(eps, second.dtype) or bool(above)
        text = f"it divided by {name}.sqrt() + eps, which is 0 in {dtype}"
        if eps_vanishes(eps, second.dtype):
            text += f" because {eps_text(eps, second.dtype)}"
        return replace(
            _with(verdict, text, _eps_fix(second.dtype)),
            phase="optimizer",
            exception="invalid" if above == 0 else "divide_by_zero",
            cause="underflow" if underflows else "out_of_domain",
            op="addcdiv",
            witness={
                **verdict.witness,
                "outside": text,
                "operands": operands,
                "index": list(index),
                "shape": list(values.shape),
            },
            path=("addcdiv", *verdict.path),
        )

    def _moment(self, verdict: Verdict) -> Verdict | None:
        """A state that is not finite says what gradient the optimizer was given."""
        for name in (*_SQUARES, *_MEANS):
            values = _values(self.state.get(name))
            if values is None or not is_inexact(values) or bool(torch.isfinite(wide(values)).all()):
                continue
            index = tuple((~torch.isfinite(wide(values))).nonzero()[0].tolist())
            dtype, value = str(values.dtype).removeprefix("torch."), float(values[index])
            mean_name, mean = self._first_of(_MEANS)
            is_square = name in _SQUARES and mean is not None and mean.shape == values.shape
            if is_square and mean is not None and math.isfinite(float(mean[index])):
                text = f"the square of a gradient that it was given is beyond {dtype}"
                seen = f"{name} is {value:g} at {list(index)}, {mean_name} {float(mean[index]):g}"
                return _with(
                    verdict, f"{text} ({seen})", "clip gradients before the step, and restore the last good checkpoint"
                )
            text = f"the gradient that it was given was not finite ({name} is {value:g} at {list(index)})"
            fix = "look at what is done to gradients between the watched step and it (unscaling, clipping)"
            return _with(verdict, text, f"{fix}, and restore the last good checkpoint")
        return None

    def _size(self, verdict: Verdict) -> Verdict | None:
        """An update by the rate, and by mean over root, that the parameter's dtype cannot hold."""
        values, rate = _values(self.parameter), float(self.group.get("lr", 0.0))
        (_, second), (name, mean) = self._first_of(_SQUARES), self._first_of(_MEANS)
        if values is None or mean is None or mean.shape != values.shape:
            return None
        update = mean.double() * rate
        if second is not None and second.shape == values.shape:
            update = update / (second.double().sqrt() + self.group.get("eps", 0.0))
        bad = ~torch.isfinite(wide(values))
        largest, limit = float(update[bad].abs().max()) if bool(bad.any()) else 0.0, torch.finfo(values.dtype).max
        if largest <= limit:
            return None
        dtype = str(values.dtype).removeprefix("torch.")
        text = f"its update of {largest:g} (lr {rate:g} times {name}) is beyond {dtype}'s {limit:g}"
        found = _with(verdict, text, "lower lr, or clip gradients before the step")
        return replace(found, phase="optimizer", exception="overflow", cause="overflow", op="add")

    def _first_of(self, names: tuple[str, ...]) -> tuple[str, Tensor | None]:
        for name in names:
            values = _values(self.state.get(name))
            if values is not None:
                return name, values
        return "", None


def _with(verdict: Verdict, seen: str, fix: str) -> Verdict:
    return replace(verdict, witness={**verdict.witness, "outside": seen}, fix=fix)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _values(value: Any) -> Tensor | None:
    values = strided(value) if isinstance(value, Tensor) else None
    return None if values is None or not values.is_floating_point() else values.detach()


def _eps_fix(dtype: torch.dtype) -> str:
    if eps_vanishes(1e-8, dtype):
        return "give an eps that this dtype can hold (eps=1e-4), or keep the weights in float32 (pytorch#8860)"
    return "give an eps above 0 (eps=1e-8)"
