"""What the failed step would have done with one thing changed, and what each answer means."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from diagnostics import Verdict
from shadowlab.errors import UserError
from shadowlab.stages.why.replay import Attempt, Replay
from shadowlab.training import Trainee

FINITE, SAME, OTHER, NOT_RUN = "finite", "same fault", "another fault", "not run"
SOME_FAIL, ALL_FAIL = "some fail", "all fail"  # of samples, each alone
_NO_KERNEL = ("No available kernel", "No viable backend")  # torch's words, in both of its dispatchers
_BEFORE_UPDATE = ("forward", "loss", "backward", "unscale", "reduce", "clip")


@dataclass(frozen=True)
class Outcome:
    """Of one counterfactual."""

    kind: str
    name: str
    result: str
    """One of the constants above."""
    meaning: str
    """What follows from it."""
    detail: str = ""
    """Numbers, or the headline of the other fault."""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An incident's verdict and its step."""

    verdict: Verdict
    replay: Replay

    @property
    def precision(self) -> str:
        return self.replay.captured.precision

    def judge(self, kind: str, name: str, trainee: Trainee, meanings: tuple[str, str]) -> Outcome:
        """Run the whole step. meanings: of a finite step and of the same fault."""
        return self.outcome(kind, name, self.replay.run(trainee), meanings)

    def outcome(self, kind: str, name: str, attempt: Attempt, meanings: tuple[str, str]) -> Outcome:
        if attempt.verdict is None:
            return Outcome(kind, name, FINITE, meanings[0], _numbers_text(attempt), _numbers(attempt))
        if is_same(attempt.verdict, self.verdict):
            return Outcome(kind, name, SAME, meanings[1])
        headline = attempt.verdict.headline()
        numbers = {"verdict": attempt.verdict.to_json()}
        return Outcome(kind, name, OTHER, "this change alone is no fix; it fails elsewhere", headline, numbers)


@dataclass(frozen=True)
class Counterfactual:
    """One change to the failed step."""

    name: str
    title: str
    possible: Callable[[Case], str | None]
    """Why it cannot be run, even if asked for; None where it can."""
    why_not: Callable[[Case], str | None]
    """Why it is left out for a verdict; None to run it."""
    run: Callable[[Case], Iterator[Outcome]]


def is_same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts name one fault: born in the same phase, way and place."""
    return _identity(one) == _identity(other)


def _identity(verdict: Verdict) -> tuple[Any, ...]:
    name = verdict.parameter
    if name is not None and verdict.phase == "data":
        name = re.sub(r"^\d+\.", "", name)  # the number of a micro-batch
    return verdict.phase, verdict.cause, verdict.op, verdict.module, name


def _numbers(attempt: Attempt) -> dict[str, Any]:
    outcome = attempt.outcome
    assert outcome is not None
    return {
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "largest_change": attempt.largest_change,
        "skipped": outcome.skipped,
    }


def _numbers_text(attempt: Attempt) -> str:
    outcome = attempt.outcome
    assert outcome is not None
    if outcome.skipped:
        return f"loss {outcome.loss:.4g}; the gradients overflowed and the scaler skipped the step"
    moved = f"largest change of a weight {attempt.largest_change:.3g}"
    return f"loss {outcome.loss:.4g}, gradient norm {outcome.grad_norm:.4g}, {moved}"


def _always(_: Case) -> None:
    return None


# --- the same step ------------------------------------------------------------------------------------------------


def _again(case: Case) -> Iterator[Outcome]:
    finite = (
        "it does not come again: a race, uninitialised memory, a nondeterministic kernel, another device or version, "
        "or code that changed the model or the batch outside the step"
    )
    if not case.replay.is_exact:
        finite = "from these weights, which are older, the batch is harmless: the weights' way from there matters"
    yield case.judge("again", "the same step again", case.replay.trainee(), (finite, "it comes again, every time"))


# --- precision ----------------------------------------------------------------------------------------------------


def _precision_why_not(case: Case) -> str | None:
    phase = case.verdict.phase
    return f"phase {phase}: the bad value is there before anything is computed" if phase in ("data", "state") else None


def _float32(case: Case) -> Iterator[Outcome]:
    yield case.judge(
        "float32",
        "float32 weights, states and operators",
        case.replay.trainee(precision="fp32"),
        (
            f"a matter of {case.precision}: the same numbers fit float32",
            f"not a matter of {case.precision}: float32 fails at the same place",
        ),
    )


def _bfloat16(case: Case) -> Iterator[Outcome]:
    yield case.judge(
        "bfloat16",
        "float32 weights and states, bfloat16 autocast",
        case.replay.trainee(precision="bf16"),
        ("--precision bf16 would have carried this step", "bfloat16 is no way out"),
    )


# --- optimizer ----------------------------------------------------------------------------------------------------


def _eps_why_not(case: Case) -> str | None:
    return None if case.verdict.phase == "optimizer" else f"phase {case.verdict.phase}: the optimizer had not stepped"


def _eps(case: Case) -> Iterator[Outcome]:
    trainee = case.replay.trainee()
    for eps in (1e-6, 1e-4):
        for group in trainee.optimizer.param_groups:
            group["eps"] = eps
        meanings = (
            f"--set optimizer.eps={eps:g} keeps this step finite; compare the change of weights with float32's",
            f"eps {eps:g} does not help",
        )
        yield case.judge("eps", f"optimizer eps {eps:g}", trainee, meanings)


def _clip_possible(case: Case) -> str | None:
    return None if case.replay.captured.optimizer.max_grad_norm is not None else "the run does not clip"


def _clip_why_not(case: Case) -> str | None:
    phase = case.verdict.phase
    return None if phase in ("clip", "optimizer") else f"phase {phase}: it failed before clipping"


def _clip(case: Case) -> Iterator[Outcome]:
    trainee = case.replay.trainee()
    trainee.learning_rate_config = trainee.learning_rate_config.model_copy(update={"max_grad_norm": None})
    meanings = (
        "clipping brought it about: it shrinks gradients until their squares vanish, or its own norm overflows",
        "clipping has no part in it",
    )
    yield case.judge("clip", "without clipping", trainee, meanings)


def _scale_possible(case: Case) -> str | None:
    return None if case.precision == "fp16" else f"{case.precision} has no loss scale"


def _scale_why_not(case: Case) -> str | None:
    phase = case.verdict.phase
    return None if phase in ("loss", "backward", "unscale") else f"phase {phase}: the loss scale is not in its way"


def _scale(case: Case) -> Iterator[Outcome]:
    trainee = case.replay.trainee()
    trainee.scaler = torch.amp.GradScaler(trainee.device.type, init_scale=1.0)
    meanings = (
        "the loss scale is at fault: start the scaler lower, or let it fall further",
        "no loss scale helps: it is not the scaled gradients that overflow",
    )
    yield case.judge("scale", "loss scale 1", trainee, meanings)


# --- attention ----------------------------------------------------------------------------------------------------


def _attention_why_not(case: Case) -> str | None:
    verdict = case.verdict
    if verdict.phase not in _BEFORE_UPDATE:
        return f"phase {verdict.phase}: no attention is computed there"
    words = " ".join([verdict.op or "", verdict.module or "", *verdict.path])
    if "att" in words or "softmax" in words or verdict.cause in ("kernel", "unknown"):
        return None
    return f"born in {verdict.op} of {verdict.module or 'no module'}, and attention is not on the path"


def _attention(case: Case) -> Iterator[Outcome]:
    trainee = case.replay.trainee()
    processors = [module.processor for module in trainee.unet.modules() if isinstance(module, Attention)]
    title = "other attention kernels"
    if not any(isinstance(processor, AttnProcessor2_0) for processor in processors):
        meaning = "the model calls no scaled_dot_product_attention, so there is no kernel to choose"
        yield Outcome("attention", title, NOT_RUN, meaning)
        return
    kernels = (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION)
    for kernel in kernels:
        name = f"attention kernel {kernel.name}"
        meanings = (f"finite with {kernel.name}: other kernels are at fault", "this kernel gives it, too")
        try:
            with sdpa_kernel(kernel):
                yield case.judge("attention", name, trainee, meanings)
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_KERNEL):
                raise
            place = f"{case.replay.device.type} in {case.precision}"
            yield Outcome("attention", name, NOT_RUN, f"not available on {place} for these shapes")


# --- samples and weights ------------------------------------------------------------------------------------------


def _samples_possible(case: Case) -> str | None:
    return None if len(case.replay.ids()) > 1 else "the step had one sample"


def _samples_why_not(case: Case) -> str | None:
    if case.verdict.phase == "state":
        return "phase state: it was bad before any sample was seen"
    return None


def _samples(case: Case) -> Iterator[Outcome]:
    trainee, names = case.replay.trainee(), case.replay.ids()
    failing = [name for i, name in enumerate(names) if case.replay.fails(trainee, case.replay.alone(i))]
    numbers = {"samples": names, "failing": failing}
    title = f"each of {len(names)} samples alone"
    if not failing:
        together = case.replay.fails(trainee, case.replay.batches)
        meaning = "only together do they fail (a sum, a norm, or the average over them)"
        if not together:
            meaning = "so are all of them together, from these weights"
        yield Outcome("samples", title, FINITE, meaning, "", numbers)
    elif len(failing) == len(names):
        yield Outcome("samples", title, ALL_FAIL, "it is not one sample's data", "", numbers)
    else:
        shown = ", ".join(failing[:8]) + (f" and {len(failing) - 8} more" if len(failing) > 8 else "")
        yield Outcome("samples", title, SOME_FAIL, f"{len(failing)} of {len(names)} do: {shown}", "", numbers)


def _weights_possible(case: Case) -> str | None:
    return None if case.replay.previous is not None else "the run has no earlier checkpoint than the one in use"


def _weights_why_not(case: Case) -> str | None:
    return "phase data: the input is bad with any weights" if case.verdict.phase == "data" else None


def _weights(case: Case) -> Iterator[Outcome]:
    previous = case.replay.previous
    assert previous is not None
    meanings = (
        f"the batch is harmless there: what happened to the weights since {previous.name} is the cause; go on from it "
        "with a lower learning rate or another precision",
        f"older weights fail on it as well: not something that grew since {previous.name}",
    )
    trainee = case.replay.trainee(checkpoint=previous)
    yield case.judge("weights", f"weights of {previous.name}", trainee, meanings)


def _repair_possible(case: Case) -> str | None:
    return None if case.replay.has_bad_tensors else "the state before the step was finite, or not kept"


def _repair(case: Case) -> Iterator[Outcome]:
    names = case.replay.captured.bad_tensors
    meanings = ("all else in the state is sound", "the damage is not in these elements alone")
    title = f"bad elements of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} set to 0"
    yield case.judge("repair", title, case.replay.trainee(repaired=True), meanings)


def _fp32_possible(case: Case) -> str | None:
    return "the run is float32 already; `operator` compares with float64" if case.precision == "fp32" else None


def _bf16_possible(case: Case) -> str | None:
    if case.precision in ("fp16", "fp16-pure"):
        return None
    return f"the run is {case.precision}: bfloat16 has the same range and fewer digits"


STEP_COUNTERFACTUALS = (
    Counterfactual("again", "the same step again", _always, _always, _again),
    Counterfactual("float32", "float32", _fp32_possible, _precision_why_not, _float32),
    Counterfactual("bfloat16", "bfloat16", _bf16_possible, _precision_why_not, _bfloat16),
    Counterfactual("eps", "other optimizer eps", _always, _eps_why_not, _eps),
    Counterfactual("clip", "without clipping", _clip_possible, _clip_why_not, _clip),
    Counterfactual("scale", "loss scale 1", _scale_possible, _scale_why_not, _scale),
    Counterfactual("attention", "other attention kernels", _always, _attention_why_not, _attention),
    Counterfactual("samples", "every sample alone", _samples_possible, _samples_why_not, _samples),
    Counterfactual("weights", "weights of the last checkpoint", _weights_possible, _weights_why_not, _weights),
    Counterfactual("repair", "bad elements set to 0", _repair_possible, _always, _repair),
)


def run_counterfactual(counterfactual: Counterfactual, case: Case) -> Iterator[Outcome]:
    """Its outcomes; what the device or the configuration does not allow becomes an outcome that says so."""
    try:
        yield from counterfactual.run(case)
    except (UserError, NotImplementedError) as error:  # the latter: an operator without a kernel for dtype and device
        yield Outcome(counterfactual.name, counterfactual.title, NOT_RUN, " ".join(str(error).split()))
    except torch.OutOfMemoryError as error:
        meaning = f"out of memory ({str(error).split('.')[0]})"
        yield Outcome(counterfactual.name, counterfactual.title, NOT_RUN, meaning)
