"""The twelve silent faults of the public code that this task follows, each put into ours: stopped, or named.

docs/insertion.md has them in a table with what stops each.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from cli.main import app
from shadowlab.checks import Check
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import UserError
from shadowlab.models import dream, unet
from shadowlab.models.diffusion import _Diffusion
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings import load_config
from shadowlab.stages.check_forward import step_checks
from shadowlab.stages.check_forward.golden_run import golden_config
from shadowlab.stages.train import setup
from shadowlab.stages.train.train import run_train
from shadowlab.tasks import open_task, perceptual
from shadowlab.tasks.insertion import task as insertion_task
from shadowlab.tasks.insertion.task import InsertionTask
from shadowlab.training import StepPlace, build_trainee, build_unet, objective_loss
from tests import tiny
from tests.stages.check_forward.faults import Fault
from tests.tasks.insertion.rows import batch_of, make_rows

CPU = torch.device("cpu")
WIDTH = 64  # of cross-attention, as the reference's prompt has it


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A UNet of two levels in place of tiny's three."""
    config = {**tiny.HUB_CONFIG, "cross_attention_dim": WIDTH, "addition_embed_type": None}
    monkeypatch.setattr(unet, "architecture_config", lambda name: dict(config))
    monkeypatch.setattr(setup, "open_views", lambda *_, **__: [])  # drawing is not what is compared


def config_of(folder: Path, *words: str) -> Any:
    own = ["model.weights=random", "model.architecture=tiny", "device=cpu", f"output_dir={folder}"]
    return load_config(preset="insertion-tiny", assignments=[*own, *words])


def golden_checks(folder: Path, *words: str) -> list[Check]:
    """Three real training steps of the task on its golden rows, next to their specification."""
    config = config_of(folder, *words)
    session = Session.open(config, RunFolder.create(config, "one"), SingleProcess(CPU), Reporter(active=False))
    return step_checks.step_checks(session, run_train)


def failing(checks: list[Check]) -> str:
    return "; ".join(f"{check.name}: {check.seen}" for check in checks if not check.passed)


def says(*words: str, code: int) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_sound_code_passes_in_both_layouts_and_objectives(tmp_path: Path, small: None) -> None:
    assert failing(golden_checks(tmp_path / "a", "train.ema_decay=null")) == ""
    other = ("task_options.model.beside=height", "task_options.model.objective=epsilon", "data.latents=somewhere")
    assert failing(golden_checks(tmp_path / "b", *other)) == ""


# 1 and 2: a step that moves nothing, and a loss that has no gradient

OF_THE_STEP = [
    Fault(
        "1: the step is never taken",
        torch.optim.AdamW,
        "step",
        lambda f: lambda self, closure=None: None,
        "was never computed (shadowlab/training/optimizer.py",
    ),
    Fault(
        "2: a part of the loss is a number",
        _Diffusion,
        "loss",
        lambda f: lambda self, p, n, d, t: 0.5 * f(self, p, n, d, t) + 0.5 * f(self, p, n, d, t).detach(),
        "_accumulate",
    ),
    Fault(
        "2: the loss is a number",
        _Diffusion,
        "loss",
        lambda f: lambda self, p, n, d, t: f(self, p, n, d, t).detach(),
        "step.py",
    ),
    Fault(
        "2: another term is added as a number",
        _Diffusion,
        "loss",
        lambda f: lambda self, p, n, d, t: f(self, p, n, d, t) + 0.1 * (p - d).abs().mean().item(),
        "diffusion.py, loss",
    ),
]


@pytest.mark.parametrize("fault", OF_THE_STEP, ids=lambda fault: fault.name)
def test_a_step_that_teaches_nothing_or_half_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, fault: Fault
) -> None:
    fault.put_in(monkeypatch)
    assert fault.place in failing(golden_checks(tmp_path))


# 3: DREAM's corrected target is thrown away


def _trainee(*words: str) -> tuple[Any, Any, Any]:
    config = config_of(Path(), "data.image_size=32", "train.ema_decay=null", *words)
    task = open_task(config, CPU)
    model = build_unet(config, task.spec, CPU)
    trainee = build_trainee(config, model, task.objective, SingleProcess(CPU), config.optimizer, 3, ema_decay=None)
    return task, trainee, task.encode(batch_of(2))


def _gradient(trainee: Any, encoded: Any) -> torch.Tensor:
    trainee.unet.zero_grad()
    objective_loss(trainee, trainee.unet, encoded, StepPlace(0, 0, 2)).mean().backward()
    return torch.cat([p.grad.flatten() for p in trainee.parameters().values()])


def test_3_with_dream_input_target_and_gradient_are_others(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain, encoded = _trainee()
    _, dreaming, _ = _trainee("task_options.model.dream=1.0")
    assert all(torch.equal(a, b) for a, b in zip(plain.unet.parameters(), dreaming.unet.parameters(), strict=True))
    asked: list[bool] = []
    dreaming.unet.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    own, other = _gradient(plain, encoded), _gradient(dreaming, encoded)
    assert asked == [False, True]  # first without gradients, then the step
    assert float((own - other).norm()) > 0.05 * float(own.norm())
    # Thrown away: the new input is trained on the old noise, which is a third gradient.
    kept: dict[str, torch.Tensor] = {}
    rectified, target = dream.Dream.rectified, dream.Dream.target

    def noting(self: Any, predict: Any, noise: torch.Tensor, data: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept["noise"] = noise
        return rectified(self, predict, noise, data, t)

    monkeypatch.setattr(dream.Dream, "rectified", noting)
    monkeypatch.setattr(
        dream.Dream, "loss", lambda self, p, n, d, t: self._objective.loss(p, kept["noise"], d, t), raising=True
    )
    thrown = _gradient(dreaming, encoded)
    assert float((thrown - other).norm()) > 0.05 * float(other.norm())
    assert target is dream.Dream.target


def test_3_a_corrected_target_that_is_thrown_away_stops_check_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "insertion-tiny", "--device", "cpu", "--set", "model.weights=random"]
    words += ["--set", "task_options.model.dream=1.0"]
    kept: dict[str, torch.Tensor] = {}
    rectified = dream.Dream.rectified

    def noting(self: Any, predict: Any, noise: torch.Tensor, data: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept["noise"] = noise
        return rectified(self, predict, noise, data, t)

    monkeypatch.setattr(step_checks, "step_checks", lambda *_: [])
    monkeypatch.setattr("shadowlab.stages.check_forward.check_forward.step_checks", lambda *_: [])
    assert "check-forward: passed" in says("check-forward", *words, "--run", "sound", code=0)
    monkeypatch.setattr(dream.Dream, "rectified", noting)
    monkeypatch.setattr(dream.Dream, "loss", lambda self, p, n, d, t: self._objective.loss(p, kept["noise"], d, t))
    assert "DREAM: the target is that of the rectified input" in says("check-forward", *words, "--run", "x", code=1)


# 4: channels in place of space, 9 and 11: keys that nobody reads


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("task_options.model.beside=channels", "9 input channels"),
        ("task_options.model.concat_dim=1", "concat_dim"),
        ("precision=no", "precision"),
        ("mixed_precision=no", "mixed_precision"),
        ("max_grad_norm=1.0", "max_grad_norm"),
        ("train.lr_scheduler=constant", "lr_scheduler"),
        ("train.checkpointing_steps=500", "checkpointing_steps"),
        ("train.resume_from_checkpoint=latest", "resume_from_checkpoint"),
        ("task_options.dream=true", "dream"),
        ("model.conditioning_dropout_prob=0.1", "conditioning_dropout_prob"),
    ],
)
def test_4_9_11_a_key_without_effect_is_refused_by_name(assignment: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        open_task(load_config(preset="insertion-tiny", assignments=[assignment]))


@pytest.mark.parametrize("text", ["precision: no", "mixed_precision: no", "train: {max_grad_norm: 1.0}"])
def test_9_yaml_that_reads_no_as_false_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: [insertion-tiny]\n{text}\n")
    with pytest.raises(UserError, match=r"precision|max_grad_norm"):
        load_config(file=tmp_path / "mine.yaml")


def test_9_bf16_keeps_master_weights() -> None:
    config = load_config(preset="insertion-tiny", assignments=["precision=bf16", "model.weights=random", "device=cpu"])
    model = build_unet(config, InsertionTask.spec, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# 5: LPIPS of another range


def test_5_lpips_is_told_the_range_of_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SimpleNamespace] = []

    class Network(SimpleNamespace):
        def __call__(self, p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            self.range = min(float(p.min()), float(g.min())), max(float(p.max()), float(g.max()))
            return (p - g).abs().mean()

        def reset(self) -> None: ...

    def network(**options: Any) -> Network:
        made.append(Network(**options))
        return made[-1]

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", network)
    perceptual._network.cache_clear()
    batch = batch_of(2)
    perceptual.lpips(1 - batch.target, batch.target, batch.mask)
    perceptual._network.cache_clear()
    assert made[0].normalize is True and 0 <= made[0].range[0] < made[0].range[1] <= 1


def test_5_metrics_of_another_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = open_task(load_config(preset="insertion-tiny", assignments=["device=cpu", "model.weights=random"]))
    reference = task.reference
    assert reference is not None
    assert step_checks.guarded("", lambda: reference.metrics(task)).passed
    original = insertion_task.per_image_metrics
    monkeypatch.setattr(insertion_task, "per_image_metrics", lambda p, g, m: original(p * 2 - 1, g * 2 - 1, m))
    check = step_checks.guarded("", lambda: reference.metrics(task))
    assert not check.passed and "metrics.py" in check.seen


# 6, 7, 8 and 10: latents that were never made, lie elsewhere, are another row's, or are slow to come

CACHED = ("--preset", "insertion-tiny", "--device", "cpu", "--set", "model.weights=random")


def test_6_and_7_latents_that_failed_or_lie_elsewhere_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_rows(tmp_path / "data")
    listed = ("--data", "data/rows.csv")
    damaged = tmp_path / "data/shots/shot_1_0.png"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:200])
    assert "row 4, target_image" in says("data", "encode", *CACHED, *listed, "--out", "latents", code=2)
    train = ("train", *CACHED, *listed, "--skip-stages", "--max-steps", "1")
    said = says(*train, "--set", "data.latents=latents", code=2)
    assert "row 4" in said or "data encode" in said
    damaged.write_bytes(sound)
    says("data", "encode", *CACHED, *listed, "--out", "latents", code=0)
    assert "data encode" in says(*train, "--set", "data.latents=elsewhere", code=2)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/checkpoints/*"))


def test_8_latents_are_found_by_content_whatever_the_order_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadowlab.training import open_source

    monkeypatch.chdir(tmp_path)
    path = make_rows(tmp_path / "data")
    says("data", "encode", *CACHED, "--data", str(path), "--out", "latents", code=0)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    config = config_of(tmp_path, f"data.path={path}", "data.latents=latents")
    task = open_task(config, CPU)
    dataset = task.open_data()
    cached = open_source(config, dataset, task, range(6)).read(range(6))
    pictures = task.encode(task.collate([dataset[i] for i in range(6)]))
    assert cached.ids == pictures.ids
    for name, tensor in pictures.tensors().items():
        assert torch.allclose(cached.tensors()[name], tensor, atol=1e-4), name


def test_8_the_training_rows_do_not_validate(tmp_path: Path) -> None:
    path = make_rows(tmp_path)
    shutil.copy(path, tmp_path / "validation.csv")
    words = ["--preset", "insertion-tiny", "--device", "cpu", "--data", str(path), "--skip-stages"]
    words += ["--set", f"task_options.validation_path={tmp_path / 'validation.csv'}"]
    assert "training set" in says("train", *words, "--max-steps", "1", code=2)


def test_10_waiting_for_data_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from shadowlab.training import DataWait

    reporter = Reporter()
    wait = DataWait(load_config(preset="insertion-tiny"), reporter)
    for waited in (0.0, 0.6, 0.6):
        wait.add(waited, 1.0)
    wait.end_window()
    printed = capsys.readouterr()
    said = " ".join((printed.out + printed.err).split())
    assert "of the time went into waiting for data" in said and "--set task=insertion" in said


# 12: masks of three channels, resized by the nearest pixel, of sizes that do not divide by 8

OF_THE_MASK = [
    Fault("nearest", insertion_task, "latent_mask", lambda f: lambda m: F.interpolate(m, scale_factor=1 / 8), "_"),
    Fault("area", insertion_task, "latent_mask", lambda f: lambda m: F.avg_pool2d(m, 8), "_"),
    Fault("inverted", insertion_task, "latent_mask", lambda f: lambda m: 1 - f(m), "_"),
]


@pytest.mark.parametrize("fault", OF_THE_MASK, ids=lambda fault: fault.name)
def test_12_a_mask_that_is_resized_otherwise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, fault: Fault
) -> None:
    config = config_of(tmp_path)
    task = open_task(config, CPU)
    reference = task.reference
    assert reference is not None
    (tmp_path / "list").mkdir()
    path = reference.write("list", tmp_path / "list")
    golden = golden_config(config, reference, path, tmp_path)
    task = open_task(golden, CPU)
    fault.put_in(monkeypatch)
    quiet = Reporter(active=False)
    check = step_checks.guarded("", lambda: step_checks._encoded(golden, reference, path, tmp_path, quiet, task))
    assert not check.passed and "mask in latents" in check.seen


def test_12_sizes_that_do_not_divide_are_refused_and_pictures_of_any_size_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image_size.*multiple"):
        load_config(preset="insertion-tiny", assignments=["data.image_size=100"])
    path = make_rows(tmp_path, size=(51, 77))
    config = config_of(tmp_path, f"data.path={path}")
    task = open_task(config, CPU)
    dataset = task.open_data()
    assert task.encode(task.collate([dataset[0]])).data.shape == (1, 4, 8, 16)


def test_12_a_mask_of_colours_is_refused(tmp_path: Path) -> None:
    path = make_rows(tmp_path)
    from PIL import Image

    file = tmp_path / "masks/shot_0_0.png"
    Image.open(file).convert("RGB").save(file)
    said = says("data", "check", str(path), "--set", "task=insertion", code=2)
    assert "row 2, mask" in said and "mode RGB" in said


def test_every_fault_has_a_row_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs/insertion.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2:4].strip(" |").isdigit()]
    assert [int(line.split("|")[1]) for line in rows] == list(range(1, 13))
