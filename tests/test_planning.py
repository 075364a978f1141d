"""The memory plan: exact where it says so, and near the memory that a real round takes."""

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensor
from typer.testing import CliRunner

from cli.main import app
from shadowlab import tasks
from shadowlab.bench.memory import measure_memory
from shadowlab.models import unwritten_vae
from shadowlab.planning.kernels import cpu_workspace, kernel_of
from shadowlab.planning.live_bytes import ACTIVATIONS, COMMUNICATION, EMA, GRADIENTS, MOMENTS, WEIGHTS, fake_tensors
from shadowlab.planning.measure import measured_peaks
from shadowlab.planning.plan import GB, MemoryPlan, StrategyPlan, plan_memory
from shadowlab.planning.rehearsal import BACKWARD, ENCODE, FORWARD, OPTIMIZER, VALIDATION
from shadowlab.planning.report import format_plan
from shadowlab.settings import load_config
from shadowlab.settings.schema import Config
from tests import tiny

MIB = 2**20


@pytest.fixture(scope="module")
def config(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny.stage_config(stage_folder, tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def plan(config: Config) -> MemoryPlan:
    return plan_memory(config, processes=2)


def of(plan: MemoryPlan, strategy: str) -> StrategyPlan:
    return next(one for one in plan.strategies if one.strategy == strategy)


def test_live_bytes_follow_a_sum_by_hand() -> None:
    """Tensors of 1, 2 and 4 MiB and a mask of 1: what is alive together counts, views and what was freed do not."""
    with fake_tensors() as live:
        live.enter("first")
        a = torch.zeros(MIB // 4)
        b = torch.cat([a, a])
        view = b.view(2, -1).t()
        live.label(WEIGHTS, a)
        assert live.live == {WEIGHTS: MIB, ACTIVATIONS: 2 * MIB}
        del b
        assert live.live[ACTIVATIONS] == 2 * MIB  # the view holds it
        del view
        live.enter("second")
        c = torch.cat([a] * 4)
        assert bool((c > 0).all()) and c[0].item() == 2.0
    assert sum(live.peaks["first"].values()) == 3 * MIB
    assert sum(live.peaks["second"].values()) == 6 * MIB + 512  # a, c, the mask and whether all of it holds


def test_planning_leaves_no_fake_constant_behind(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` is often the first to import a task, and pictures may be read in the same process afterwards."""
    for name in [name for name in sys.modules if name.startswith("shadowlab.tasks.shadow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(tasks, "shadow", tasks.shadow)  # the package's attribute, too, is put back
    plan_memory(config, strategies=["single"])
    again = [module for name, module in sys.modules.items() if name.startswith("shadowlab.tasks.shadow")]
    made = [value for module in again for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert not [tensor for tensor in made if isinstance(tensor, FakeTensor)]


def test_exact_items_are_exact(plan: MemoryPlan, config: Config) -> None:
    """Every tensor rounded up to the allocator's 512 bytes."""
    parameters = list(tiny.shadow_unet(config.model.weights).parameters())
    assert plan.num_parameters == sum(p.numel() for p in parameters)
    weights = sum(-(-p.numel() * 4 // 512) * 512 for p in parameters)
    step_counters = 512 * len(parameters)
    for strategy in ("single", "ddp"):
        held = of(plan, strategy).peak(OPTIMIZER).items
        assert held[WEIGHTS] == held[GRADIENTS] == held[EMA] == weights
        assert held[MOMENTS] == 2 * weights + step_counters


def test_micro_batches_that_are_not_traced_hold_their_latents(config: Config) -> None:
    def planned(count: int) -> StrategyPlan:
        train = config.train.model_copy(update={"gradient_accumulation_steps": count})
        return plan_memory(config.model_copy(update={"train": train}), strategies=["single"]).strategies[0]

    two, three, ten = planned(2), planned(3), planned(10)
    for moment in (ENCODE, FORWARD, BACKWARD, OPTIMIZER):
        one = three.peak(moment).items[ACTIVATIONS] - two.peak(moment).items[ACTIVATIONS]
        assert one > 0 and ten.peak(moment).items[ACTIVATIONS] == two.peak(moment).items[ACTIVATIONS] + 8 * one
    assert ten.peak(VALIDATION) == two.peak(VALIDATION)


def test_strategies_differ_where_they_should(plan: MemoryPlan) -> None:
    single, ddp, fsdp2 = (of(plan, name) for name in ("single", "ddp", "fsdp2"))
    assert GRADIENTS not in single.peak(FORWARD).items  # dropped before the step; DDP's buckets stay
    assert ddp.peak(FORWARD).items[GRADIENTS] == ddp.peak(OPTIMIZER).items[GRADIENTS]
    assert ddp.most(COMMUNICATION) == single.most(COMMUNICATION) == 0 < fsdp2.most(COMMUNICATION)
    whole, shard = single.most(WEIGHTS), fsdp2.most(WEIGHTS)
    assert whole / 2 <= shard < 0.7 * whole  # half, and the padding of very small tensors
    for moment in (FORWARD, BACKWARD):  # activations are nobody else's
        assert fsdp2.peak(moment).items[ACTIVATIONS] == pytest.approx(ddp.peak(moment).items[ACTIVATIONS], rel=0.1)


def test_choices_show(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """More samples take more, checkpointing less; without an EMA there is none, and no copy while it is judged."""

    def planned(*words: str) -> StrategyPlan:
        config = tiny.stage_config(stage_folder, tmp_path, "data.image_size=256", *words)
        return plan_memory(config, strategies=["single"]).strategies[0]

    def step(one: StrategyPlan) -> int:
        return max(one.peak(moment).items[ACTIVATIONS] for moment in (FORWARD, BACKWARD))

    base, larger = planned(), planned("train.batch_size=4")
    assert step(larger) == pytest.approx(2 * step(base), rel=0.05)
    assert step(planned("model.gradient_checkpointing=true")) < 0.9 * step(base)
    without = planned("train.ema_decay=null")
    assert without.most(EMA) == 0
    saved = base.peak(VALIDATION).total - without.peak(VALIDATION).total
    assert saved == pytest.approx(2 * base.most(EMA), rel=0.01)  # the average, and the weights set aside


@pytest.mark.parametrize("channels", [(64, 64), (32, 96), (96, 32), (3, 64)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_on_a_cpu_holds_copies_in_its_own_layout(channels: tuple[int, int], kernel: int) -> None:
    """In float32; known sums of a picture of 16 x 16, as measured: what is read, what is made, and copies of both."""
    read, made = (count * 256 * 4 for count in channels)
    with fake_tensors(cpu_workspace) as live:
        weight = torch.zeros(channels[1], channels[0], kernel, kernel)
        picture = torch.zeros(1, channels[0], 16, 16)
        live.enter("forward")
        before = sum(live.live.values())
        result = torch.conv2d(picture, weight, padding=kernel // 2)
        held = sum(live.peaks["forward"].values()) - before
    copied = 0 if channels[0] == 3 else read
    assert result.shape[1] == channels[1]
    assert held == (made if kernel == 1 else made + max(copied, made))


def test_the_tiny_autoencoder_is_known_by_its_name() -> None:
    def num_parameters(source: str) -> int:
        return unwritten_vae(source).num_parameters

    assert num_parameters("madebyollin/taesd") == num_parameters("mirror/TAESDXL") == 2_445_063
    assert num_parameters("stabilityai/sdxl-vae") == num_parameters("taesd-owner/vae") == 83_653_863


def test_attention_is_that_of_a_gpu() -> None:
    assert kernel_of(torch.bfloat16) == "flash"
    assert kernel_of(torch.float32) == kernel_of(torch.bfloat16, 512) == "memory-efficient"


def test_the_table_says_what_fits_and_what_is_assumed(plan: MemoryPlan) -> None:
    text = format_plan(plan, 80 * GB)
    assert text.count("(assumed)") == 3
    assert "fits 80 GB" in text and "NO" not in text
    assert format_plan(plan, GB).count("NO") == 3
    needed = of(plan, "ddp").needed
    assert needed == of(plan, "ddp").highest.total + sum(of(plan, "ddp").assumed.values())


def test_the_plan_is_within_a_tenth_of_the_measured_peak() -> None:
    """Resident memory of a real round in a process of its own, on a UNet of 31 M parameters; see `bench memory`."""
    widths = {"block_out_channels": (128, 384), "norm_num_groups": 32, "sample_size": 32}
    cases = ["with checkpointing"]
    unet, device = tiny.hub_unet(**widths), torch.device("cpu")
    [found] = measure_memory(unet, image_size=256, batch_size=1, device=device, cases=cases)
    assert 0.9 < found.ratio < 1.1, found.text


def test_insertion_fits_8_gb_item_by_item() -> None:
    done = CliRunner().invoke(app, ["plan", "--preset", "insertion-8gb", "--gpu-memory", "8", "--strategy", "single"])
    assert done.exit_code == 0, done.output
    lines = {line[:42].strip(): line[42:].split() for line in done.output.splitlines()}
    assert lines["fits 8 GB"] == ["yes"] and float(lines["needed"][0]) < 8
    order = list(lines)
    assert order.index("activations in backward") < order.index("weights")  # activations first
    assert float(lines["AdamW moments of 8 bits"][0]) == pytest.approx(49.574 * 2 / 1000, abs=0.01)
    assert float(lines["weights"][0]) == pytest.approx(859.535 * 4 / 1000, abs=0.01)
    assert float(lines["VAE weights"][0]) == pytest.approx(2.445 * 4 / 1000, abs=0.01)  # TAESD's


def test_insertion_8gb_on_a_small_model_is_planned_as_it_is_measured() -> None:
    """The settings of insertion-8gb on a model that a CPU holds."""
    small = ["model.architecture=tiny-inpainting", "model.weights=embedded-inpainting", "model.vae=random-tiny"]
    small += ["data.path=embedded", "data.image_size=256", "train.gradient_accumulation_steps=1", "device=cpu"]
    config = load_config(preset="insertion-8gb", assignments=small)
    [planned] = plan_memory(config, device="cpu", strategies=["single"]).strategies
    measured = measured_peaks(config)
    assert planned.highest.total / max(measured.values()) == pytest.approx(1, abs=0.04), measured
    for moment, size in measured.items():
        assert planned.peak(moment).total / size == pytest.approx(1, abs=0.08), moment
