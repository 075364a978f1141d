"""Every case of the corpus is named as it should be, and looking changes nothing."""

import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx.traceback
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from diagnostics import explain
from shadowlab.bench.case_trial import explained
from shadowlab.bench.corpus import FAULTS, Fault, Scene
from shadowlab.bench.faults import run_faults
from shadowlab.bench.states import bits_of, state_of

SOURCE = re.compile(r"[\w.-]+/[\w.-]+#\d+|https://\S+")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_field_that_a_case_states_is_right(fault: Fault):
    before = traces()
    trial = explained(fault)
    assert not trial.wrong, f"{trial.wrong}\n{trial.verdict}"
    assert traces() == before


def test_the_corpus_is_what_was_asked_for():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    faults = [fault for fault in FAULTS if fault.expected is not None]
    assert len(faults) >= 118 + 40 and len(FAULTS) - len(faults) >= 26 + 12
    phases = {fault.expected.phase for fault in faults if fault.expected is not None}
    assert phases >= {"state", "data", "forward", "loss", "backward", "unscale", "clip", "optimizer", "ema"}
    sourced = [fault for fault in FAULTS if fault.reference != "synthetic"]
    assert all(SOURCE.fullmatch(fault.reference) for fault in sourced)
    assert len(sourced) >= 130
    kinds = {
        "raises",
        "accumulation",
        "generator",
        "outside",
        "written_after",
        "subclass",
        "sparse",
        "dtensor",
        "hidden",
    }
    assert kinds <= {tag for fault in FAULTS for tag in fault.tags}


def test_an_error_that_a_verdict_explains_is_reported_with_it():
    def step() -> None:
        loss = (torch.ones(3, requires_grad=True) - 2).sqrt().sum()
        raise FloatingPointError(f"loss is {loss.item()}\nand more")

    verdict = explain(step)
    assert verdict is not None
    assert (verdict.op, verdict.witness["raised"]) == ("sqrt", "FloatingPointError: loss is nan")
    assert "raised FloatingPointError: loss is nan" in " ".join(str(verdict).split())

    with pytest.raises(ZeroDivisionError):
        explain(lambda: 1 / 0)


def test_the_command_counts_the_same():
    assert run_faults(names=[FAULTS[0].name, FAULTS[-1].name]).passed


# No trace


def traces() -> dict[str, Any]:
    """Global switches, hooks and functions that an explanation puts in place of others."""
    hooks = [module_hooks._global_forward_hooks, module_hooks._global_forward_pre_hooks]
    hooks += [module_hooks._global_forward_hooks_always_called, module_hooks._global_backward_hooks]
    hooks += [optimizer_hooks._global_optimizer_pre_hooks, optimizer_hooks._global_optimizer_post_hooks]
    return {
        "hooks": [list(one) for one in hooks],
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "format_stack": torch.fx.traceback.format_stack,
        "backward": torch.autograd.backward,
        "scale": torch.amp.GradScaler.scale,
        "total_norm": torch.nn.utils.clip_grad._get_total_norm,
        "modes": list(_get_current_dispatch_mode_stack()),
        "compile": torch.compiler.is_compiling(),
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_step_that_raises_leaves_no_trace(kind: type[BaseException]):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters())
    before = traces()

    def step() -> None:
        model(torch.ones(1, 2)).sum().backward()
        raise kind("the loop's own")

    with pytest.raises(kind, match="the loop's own"):
        explain(step, model=model, optimizer=optimizer)
    assert traces() == before
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_another_make_gets_its_step_back():
    class Wrapped:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.state, self.param_groups = inner, inner.state, inner.param_groups

        def step(self) -> None:
            self.inner.step()

    model = nn.Linear(2, 2)
    optimizer = Wrapped(torch.optim.SGD(model.parameters()))

    def step() -> None:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    assert explain(step, model=model, optimizer=optimizer) is None
    assert "step" not in vars(optimizer)


# Bit for bit


def listed(scene: Scene) -> list[nn.Module]:
    model = scene.model
    return [] if model is None else list(model) if isinstance(model, list) else [model]


def final_bits(fault: Fault, run: Callable[[Scene], Any]) -> dict[str, bytes]:
    torch.manual_seed(0)
    scene = fault.build().start()
    torch.manual_seed(1)
    with contextlib.suppress(Exception, SystemExit):  # some loops stop by themselves
        run(scene)
    return bits_of(state_of(listed(scene), scene.optimizer, gradients=True)) | {"rng": bytes(torch.get_rng_state())}


# Memory that nobody has written holds something else each time.
UNREPEATABLE = ("unwritten", "uninitialized", "garbage", "empty")


@pytest.mark.usefixtures("own_group")
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if not any(word in f.name for word in UNREPEATABLE)], ids=lambda fault: fault.name
)
def test_a_step_leaves_the_same_bits_when_it_is_explained(fault: Fault):
    def explained(scene: Scene) -> None:
        explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)

    assert final_bits(fault, explained) == final_bits(fault, lambda scene: scene.step())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_a_unet_with_adamw_leaves_the_same_bits(options: dict[str, bool], checkpointing: bool):
    from tests import tiny

    start = tiny.hub_unet().train()
    if checkpointing:
        start.enable_gradient_checkpointing()

    def trained(through: Callable[[Callable[[], Tensor], nn.Module, Any], Any]) -> dict[str, bytes]:
        unet = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, **options)
        torch.manual_seed(0)
        for _ in range(2):

            def step() -> Tensor:
                optimizer.zero_grad()
                x, text = torch.randn(2, 4, tiny.SIDE, tiny.SIDE), torch.randn(2, 3, 16)
                added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.rand(2, 6)}
                loss = unet(x, torch.rand(2), text, added_cond_kwargs=added).sample.square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                return loss

            through(step, unet, optimizer)
        return bits_of(state_of([unet], optimizer, gradients=True)) | {"rng": bytes(torch.get_rng_state())}

    def explained(step: Callable[[], Tensor], unet: nn.Module, optimizer: Any) -> None:
        assert explain(step, model=unet, optimizer=optimizer) is None

    assert trained(explained) == trained(lambda step, *_: step())
