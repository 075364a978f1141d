"""model.compile: watched, explained and saved as without it."""

from pathlib import Path

import pytest
import torch

from diagnostics.errors import NonFiniteError
from shadowlab.errors import MissingDependencyError
from shadowlab.training import compilation
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.step import training_step
from shadowlab.training.trainee import Trainee
from tests import tiny
from tests.training.test_step import assert_equal, everything, place, take_step

COMPILED = "model.compile=true"
NEVER = "diagnostics.statistics_every=0"
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"

pytestmark = [  # what torch.compile warns of in torch's own code
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _compiled_code_is_dropped():
    yield
    torch.compiler.reset()


def num_programs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def trainee_after(hub_folder: Path, num_steps: int, *words: str, attached: bool = True) -> Trainee:
    trainee = tiny.trainee_of(hub_folder, *words)
    if not attached:
        trainee.watch.detach()
    for step in range(num_steps):
        take_step(trainee, step)
    return trainee


def test_watching_a_compiled_model(hub_folder: Path) -> None:
    """Between statistics weights are bit for bit those of an unwatched run; a step with statistics, which measures
    every layer, is bit for bit an eager one."""
    before = num_programs()
    unwatched = trainee_after(hub_folder, 2, COMPILED, NEVER, attached=False)
    assert num_programs() > before
    assert_equal(everything(trainee_after(hub_folder, 2, COMPILED, NEVER)), everything(unwatched))

    eager = trainee_after(hub_folder, 1)
    compiled = trainee_after(hub_folder, 1, COMPILED)
    assert_equal(everything(compiled), everything(eager))
    assert compiled.watch.layers == eager.watch.layers
    assert any(name.startswith(BLOCK) for name in eager.watch.layers)
    take_step(eager, 1), take_step(compiled, 1)
    for name, value in everything(eager).items():
        torch.testing.assert_close(everything(compiled)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointed", ["false", "true"])
def test_a_fault_inside_a_compiled_block_is_explained(hub_folder: Path, checkpointed: str) -> None:
    """Blamed is the layer inside the block, although no hook is there when it happens."""
    words = (COMPILED, f"model.gradient_checkpointing={checkpointed}")
    trainee = trainee_after(hub_folder, 2, *words)
    with torch.no_grad():
        trainee.unet.get_submodule(f"{BLOCK}.ff.net.0.proj").weight.fill_(3e38)
    before = everything(trainee)
    with pytest.raises(NonFiniteError) as caught:
        take_step(trainee, 2)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.exception, verdict.reproducible) == ("forward", "overflow", True)
    assert verdict.module is not None and verdict.module.startswith(f"{BLOCK}.ff")
    assert_equal(everything(trainee), before)


def test_a_bad_sample_of_a_compiled_model_is_named(hub_folder: Path) -> None:
    trainee = trainee_after(hub_folder, 2, COMPILED)
    batch = tiny.encoded_batch(range(8, 12))
    batch.conditions.concatenated[2, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        training_step(trainee, [batch], place(2))
    assert (caught.value.verdict.phase, caught.value.verdict.samples) == ("data", (2,))


def test_checkpoints_are_the_same_files(hub_folder: Path, tmp_path: Path) -> None:
    compiled = trainee_after(hub_folder, 2, COMPILED)
    path = save_checkpoint(tmp_path, compiled, step=2, position=8, identity={}, keep_last=1)
    plain = tiny.trainee_of(hub_folder)
    load_checkpoint(path, plain)
    assert_equal(everything(plain), everything(compiled))
    again = tiny.trainee_of(hub_folder, COMPILED)
    load_checkpoint(path, again)
    assert take_step(again, 2) == take_step(compiled, 2)
    assert_equal(everything(again), everything(compiled))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"needs a C\+\+ compiler .*apt install g\+\+.*model.compile=false"
    ) as e:
        compilation.compile_blocks(torch.nn.Module())
    assert e.value.exit_code == 3


@pytest.mark.parametrize("words", [("model.channels_last=true", "optimizer.fused=false"), ("optimizer.fused=true",)])
def test_layout_and_fused_steps(hub_folder: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """They change rounding alone, watching changes nothing of them, and what is resumed is what was saved."""
    both = ("model.channels_last=true", "optimizer.fused=true")
    trainee = trainee_after(hub_folder, 3, *words)
    assert_equal(everything(trainee), everything(trainee_after(hub_folder, 3, *words, attached=False)))
    plain = everything(trainee_after(hub_folder, 3, "optimizer.fused=false"))
    for name, value in everything(trainee).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)

    trainee = trainee_after(hub_folder, 2, *both)
    path = save_checkpoint(tmp_path, trainee, step=2, position=8, identity={}, keep_last=1)
    again = tiny.trainee_of(hub_folder, *both)
    load_checkpoint(path, again)
    assert take_step(again, 2) == take_step(trainee, 2)
    assert_equal(everything(again), everything(trainee))
    assert again.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_fused_step_is_undone(hub_folder: Path) -> None:
    """float16 weights that weight decay throws beyond 65504, in one kernel that shows nothing of its inside."""
    words = ("precision=fp16-pure", "allow_unsafe=true", "optimizer.learning_rate=10", "optimizer.weight_decay=100")
    trainee = tiny.trainee_of(hub_folder, "optimizer.fused=true", *words)
    with torch.no_grad():
        trainee.unet.conv_out.bias.fill_(1000.0)
    before = tiny.weights_of(trainee)
    with pytest.raises(NonFiniteError) as caught:
        take_step(trainee, 0)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.reproducible) == ("optimizer", "conv_out.bias", True)
    assert_equal(tiny.weights_of(trainee), before)
