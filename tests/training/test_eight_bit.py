"""AdamW in 8 bits: what it keeps, that a run with it resumes bit for bit, and that a NaN gradient never reaches it."""

import importlib.util
import logging
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diagnostics import NonFiniteError
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.extras import require_extras
from shadowlab.models import architecture_of, unwritten_unet
from shadowlab.settings.schema import OptimizerConfig
from shadowlab.tasks.insertion.task import InsertionTask
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.eight_bit import BLOCK, SMALLEST, _quiet_import, adamw8bit, moments_of
from shadowlab.training.step import StepPlace, training_step
from shadowlab.training.trainee import Trainee
from tests import runs, tiny
from tests.diagnostics.loops import BadGradient
from tests.training.optimizers import alike, state_of
from tests.training.test_step import take_step

installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra low-memory is not installed"
)
EIGHT = "optimizer.name=adamw8bit"
ACCUMULATION = 4


def trainee_of(hub_folder: Path, *words: str) -> Trainee:
    return tiny.trainee_of(hub_folder, EIGHT, *words)


def kept(trainee: Trainee) -> list[Any]:
    """Weights, averages and optimizer states, as copies."""
    averages = [] if trainee.ema is None else [average.clone() for average in trainee.ema.shadow_params]
    weights = [parameter.detach().clone() for parameter in trainee.unet.parameters()]
    return [weights, averages, [_copy(state) for state in state_of(trainee.optimizer)]]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(one) for one in value]
    return value.clone() if isinstance(value, Tensor) else value


def micro_batches(step: int) -> list[Any]:
    first = step * ACCUMULATION
    return [tiny.encoded_batch([first + part]) for part in range(ACCUMULATION)]


# --- what it is --------------------------------------------------------------------------------------------------


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@installed
@pytest.mark.parametrize("num", [7, SMALLEST - 1, SMALLEST, SMALLEST + BLOCK + 3, 3 * SMALLEST])
def test_its_moments_are_those_of_adamw(num: int) -> None:
    """To within the eighth bit above the smallest size, and to the last bits of float32 below it."""
    config = OptimizerConfig(learning_rate=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, num)) for _ in range(2))
    eight = adamw8bit([ours], config)
    usual = torch.optim.AdamW([theirs], 1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for _ in range(4):
        ours.grad = torch.randn(num) * torch.linspace(0.1, 3.0, num)
        theirs.grad = ours.grad.clone()
        eight.step()
        usual.step()
    found, wanted = moments_of(eight.state[ours]), moments_of(usual.state[theirs])
    assert found.keys() == wanted.keys() == {"exp_avg", "exp_avg_sq"}
    limit = 2e-2 if num >= SMALLEST else 1e-6
    for kind, moment in wanted.items():
        assert found[kind].shape == moment.shape and distance(found[kind], moment) < limit, kind
    assert distance(ours.detach(), theirs.detach()) < limit
    assert eight.state[ours]["state1"].dtype == (torch.uint8 if num >= SMALLEST else torch.float32)


def test_a_parameter_without_a_state_has_no_moments() -> None:
    assert moments_of({}) == {}


@installed
def test_its_state_takes_two_bytes_a_parameter(hub_folder: Path) -> None:
    trainee = trainee_of(hub_folder, "train.ema_decay=null")
    take_step(trainee, 0)
    sizes = {}
    for name, parameter in trainee.parameters().items():
        own = [v for k, v in trainee.optimizer.state[parameter].items() if isinstance(v, Tensor) and "qmap" not in k]
        sizes[name] = (parameter.numel(), sum(tensor.numel() * tensor.element_size() for tensor in own))
    large = [size for size in sizes.values() if size[0] >= SMALLEST]
    small = [size for size in sizes.values() if size[0] < SMALLEST]
    assert large and small
    assert 2.0 < sum(b for _, b in large) / sum(n for n, _ in large) < 2.05  # two bytes, and 8 for each block of 256
    assert all(b == 8 * n for n, b in small)


@installed
def test_what_trains_of_stable_diffusion_takes_two_bytes_a_parameter_small_tensors_included() -> None:
    """The 80 tensors of self-attention: a state of each shape there is, as often as there are such tensors."""
    with torch.device("meta"):
        unet = unwritten_unet(architecture_of("random", "sd15-inpainting"), InsertionTask.spec)
    shapes = Counter(tuple(p.shape) for name, p in unet.named_parameters() if ".attn1." in name)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for one in parameters:
        one.grad = torch.full_like(one, 1e-3)
    optimizer = adamw8bit(parameters, OptimizerConfig())
    optimizer.step()
    total = 0
    for parameter, count in zip(parameters, shapes.values(), strict=True):
        own = [v for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor) and "qmap" not in k]
        total += count * sum(tensor.numel() * tensor.element_size() for tensor in own)
    assert sum(math.prod(shape) * count for shape, count in shapes.items()) == 49_574_080
    assert sum(shapes.values()) == 80
    assert 2.03 < total / 49_574_080 < 2.04


# --- checkpoints -------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_resumes_bit_for_bit(hub_folder: Path, tmp_path: Path, precision: str) -> None:
    """3 + 3 steps are 6."""
    whole, first, second = (trainee_of(hub_folder, f"precision={precision}") for _ in range(3))
    outcomes = [take_step(whole, step, micro_batches=2) for step in range(6)]
    for step in range(3):
        take_step(first, step, micro_batches=2)
    path = save_checkpoint(tmp_path, first, step=3, position=12, identity={}, keep_last=3)
    load_checkpoint(path, second)
    assert alike(state_of(second.optimizer), state_of(first.optimizer))
    assert [take_step(second, step, micro_batches=2) for step in range(3, 6)] == outcomes[3:]
    assert alike(kept(second), kept(whole))
    saved = load_file(path / "optimizer.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.uint8, torch.float32}
    assert len([name for name in saved if "qmap" in name]) == 2  # of all tensors, each once
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".json", ""}


@installed
def test_the_command_trains_and_goes_on(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """2 + 2 steps are 4, in a run folder's files."""
    whole, parted = (partial(runs.command, stage_folder, tmp_path, name) for name in ("whole", "parted"))
    runs.run_here(whole(4, EIGHT))
    runs.run_here(parted(2, EIGHT))
    runs.run_here([*parted(4), "--resume"])
    ends = [runs.tensors(tmp_path / name, 4) for name in ("whole", "parted")]
    assert alike(*ends) and any(tensor.dtype is torch.uint8 for tensor in ends[0].values())


@installed
@pytest.mark.parametrize("names", [("adamw", "adamw8bit"), ("adamw8bit", "adamw")])
def test_the_state_of_the_other_optimizer_is_refused(hub_folder: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    first, second = (tiny.trainee_of(hub_folder, f"optimizer.name={name}") for name in names)
    take_step(first, 0)
    path = save_checkpoint(tmp_path, first, step=1, position=4, identity={}, keep_last=3)
    with pytest.raises(UserError, match=r"the state of AdamW(8bit)?, the run has AdamW(8bit)?"):
        load_checkpoint(path, second)


# --- nothing bad is kept -----------------------------------------------------------------------------------------


def spoiled_sample(trainee: Trainee, batches: list[Any]) -> None:
    batches[2].data[0, 1, 2] = math.nan


def spoiled_forward(trainee: Trainee, batches: list[Any]) -> None:
    trainee.unet.conv_out.register_forward_hook(lambda module, given, out: (out - out.amax() - 1).sqrt())


def spoiled_backward(trainee: Trainee, batches: list[Any]) -> None:
    trainee.unet.conv_out.register_forward_hook(lambda module, given, out: BadGradient.apply(out))


FAULTS: dict[str, Callable[[Trainee, list[Any]], None]] = {
    "data": spoiled_sample,
    "forward": spoiled_forward,
    "backward": spoiled_backward,
}


@installed
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("phase", FAULTS)
def test_a_nan_gradient_leaves_weights_and_states_as_they_were(
    hub_folder: Path, tmp_path: Path, phase: str, at: int
) -> None:
    """Under bfloat16, with four micro-batches a step; the states would be finite afterwards."""
    trainee = trainee_of(hub_folder, "precision=bf16")
    for step in range(at):
        training_step(trainee, micro_batches(step), StepPlace(step, step * ACCUMULATION, ACCUMULATION))
    before, batches = kept(trainee), micro_batches(at)
    FAULTS[phase](trainee, batches)
    with pytest.raises(NonFiniteError) as raised:
        training_step(trainee, batches, StepPlace(at, at * ACCUMULATION, ACCUMULATION))
    verdict = raised.value.verdict
    assert (verdict.phase, verdict.step, verdict.reproducible) == (phase, at, True), verdict
    if phase == "data":
        assert (verdict.parameter, verdict.samples) == ("2.data", (0,)), verdict
    else:
        wanted = {"forward": ("sqrt", "invalid"), "backward": ("div", "divide_by_zero")}[phase]
        assert (verdict.op, verdict.exception) == wanted, verdict
    assert alike(kept(trainee), before)


@installed
def test_a_run_goes_on_as_if_the_bad_step_had_not_been(hub_folder: Path) -> None:
    ends = []
    for trips in (False, True):
        trainee = trainee_of(hub_folder, "precision=bf16")
        for step in range(4):
            place = StepPlace(step, step * ACCUMULATION, ACCUMULATION)
            if trips and step in (0, 2):
                batches = micro_batches(step)
                spoiled_sample(trainee, batches)
                with pytest.raises(NonFiniteError):
                    training_step(trainee, batches, place)
            training_step(trainee, micro_batches(step), place)
        ends.append(kept(trainee))
    assert alike(*ends)


@installed
def test_a_kernel_that_spoils_a_weight_is_stopped(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a gradient and a state do not show, the weight does."""
    import bitsandbytes.functional as kernels

    trainee = trainee_of(hub_folder, "precision=bf16")
    take_step(trainee, 0)
    original, victim = kernels.optimizer_update_8bit_blockwise, trainee.unet.get_parameter("conv_out.weight")
    large = max(trainee.parameters().items(), key=lambda named: named[1].numel())

    def faulty(name: str, g: Tensor, p: Tensor, *rest: Any, **named: Any) -> None:
        original(name, g, p, *rest, **named)
        if p is large[1]:
            p.data.view(-1)[7:8].div_(torch.zeros(1))

    monkeypatch.setattr(kernels, "optimizer_update_8bit_blockwise", faulty)
    before = kept(trainee)
    with pytest.raises(NonFiniteError) as raised:
        take_step(trainee, 1)
    assert (raised.value.verdict.phase, raised.value.verdict.parameter) == ("optimizer", large[0])
    assert victim is not large[1] and alike(kept(trainee), before)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["precision=fp16-pure", "allow_unsafe=true"], "fp16-pure has none: use --precision fp16 or bf16"),
        (["distributed.strategy=fsdp2"], r"bitsandbytes#89\): use distributed\.strategy=ddp"),
        (["model.channels_last=true"], r"use model\.channels_last=false"),
        (["optimizer.fused=true"], r"leave optimizer\.fused out"),
        (["optimizer.fused=false"], r"leave optimizer\.fused out"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_configuration(hub_folder: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=rf"adamw8bit .*{says}, or optimizer\.name=adamw"):
        tiny.config_of(hub_folder, EIGHT, *words)
    tiny.config_of(hub_folder, *words)  # with the other one they are allowed


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "bitsandbytes" else found(name, *rest)

    monkeypatch.setattr("shadowlab.extras.find_spec", find_spec)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_without_the_package_it_is_one_sentence(hub_folder: Path) -> None:
    config = tiny.config_of(hub_folder, EIGHT)
    for ask in (lambda: require_extras(config), lambda: trainee_of(hub_folder)):
        with pytest.raises(MissingDependencyError) as raised:
            ask()
        text = str(raised.value)
        assert text.startswith("optimizer.name=adamw8bit needs bitsandbytes (") and "\n" not in text
        assert text.endswith("): pip install 'shadowlab[low-memory]'")
    require_extras(tiny.config_of(hub_folder))


# --- its import --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [False, True])
def test_its_import_fetches_no_kernels(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package `kernels` is installed, it would load compiled code from the hub."""
    if is_there:
        monkeypatch.setitem(sys.modules, "kernels", logging)
    else:
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with _quiet_import(), pytest.raises(ImportError):
        import kernels  # noqa: F401
    assert sys.modules.get("kernels") is (logging if is_there else None)
    assert ("kernels" in sys.modules) is is_there


@installed
def test_its_import_says_nothing() -> None:
    words = "from shadowlab.training.eight_bit import _bitsandbytes; print(_bitsandbytes().__name__)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("bitsandbytes\n", "")
