"""What to suspect where a step tripped and its repetition did not: first what the watch knows of it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diagnostics.verdict import Verdict

_SUSPECTS = (
    "a race (an asynchronous copy), memory that is read before it is written, a nondeterministic kernel, or the "
    "hardware (torchtitan#951)"
)
_LEFT = (
    "the step was not repeated, because its body was left by `break` or `return`: leave it behind the "
    "`for attempt in watch.attempts()` block, and its origin is named"
)


@dataclass(frozen=True)
class Clues:
    """What is known of a step and its repetition."""

    iterators: Sequence[str] = ()
    """Names of iterators that the step may take its batch from."""
    generators: Sequence[torch.Generator] = ()
    """Those that operators of the repetition took and nobody had put back."""
    optimizer_was_asked: tuple[bool, bool] = (True, True)
    """Whether an optimizer was asked to step, the first time and in the repetition."""
    gradients_were_changed: bool = False
    """The step had written to gradients that were there before it, zeros perhaps, before anybody could copy them."""
    models: Sequence[nn.Module] = field(default=(), repr=False)


def not_repeated(phase: str, seen: str) -> Verdict:
    """Of a step whose body was left."""
    return Verdict(phase, None, "unknown", witness={"seen": seen}, fix=_LEFT)


def not_reproduced(phase: str, seen: str, failure: BaseException | None, clues: Clues) -> Verdict:
    """Of a step that was finite when it was repeated, or whose repetition failed.

    Args:
        phase: where the value was met. seen: what was. failure: what the repetition raised.
    """
    if failure is not None:
        seen += f"; the replay ended with {type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
    return Verdict(
        phase=phase,
        exception=None,
        cause="unknown",
        witness={"seen": seen},
        fix=_fix(failure, clues),
        reproducible=None if failure else False,
    )


def _fix(failure: BaseException | None, clues: Clues) -> str:
    known = list(_known(clues))
    if failure is not None:
        return "; ".join(["let the step be callable twice: it must not consume its batch", *known])
    start = "the same step was finite when it was repeated: "
    if known:
        return start + "; ".join(known)
    suspects = ["that it was repeated eagerly (try without torch.compile)"] * _is_compiled(clues.models)
    if clues.gradients_were_changed:  # or zeroed, which is no harm
        suspects.append("gradients from before the step that it changes before backward or clipping adds to them")
    return f"{start}suspect {', '.join([*suspects, _SUSPECTS])}"


def _known(clues: Clues) -> Any:
    """What was not as before."""
    if clues.iterators:
        names = ", ".join(f"`{name}`" for name in clues.iterators)
        yield f"it takes from the iterator {names}, so it had another batch: take the batch before the step"
    for device in {str(generator.device) for generator in clues.generators}:
        yield (
            f"an operator took a torch.Generator ({device}) that the watch had not found, so it drew other numbers; "
            "from now on it is put back, or give it by `generators=`"
        )
    first, again = clues.optimizer_was_asked
    if first != again:
        done = ("the optimizer stepped the first time and was not asked to", "the optimizer was asked to step only")
        yield (
            f"{done[not first]} in the repetition: the step counts its calls (an accumulation of its own); count "
            "outside of it, or give the watch what counts (`accelerator=`)"
        )


def _is_compiled(models: Sequence[nn.Module]) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    modules = (module for model in models for module in model.modules())
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in modules)
