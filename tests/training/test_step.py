"""The training step: a pure function of weights, batch, seed and step; and it keeps nothing bad."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.statistics.layers import LayerStatistics
from diagnostics.statistics.parameters import ParameterStatistics
from shadowlab.encoded_batch import Conditions
from shadowlab.training.step import StepOutcome, StepPlace, forward_backward, objective_loss, training_step
from shadowlab.training.trainee import Trainee
from tests import tiny


def place(step: int, size: int = 4) -> StepPlace:
    return StepPlace(step, step * size, size)


def take_step(trainee: Trainee, step: int, *, micro_batches: int = 1, size: int = 4) -> StepOutcome:
    positions = range(step * size, (step + 1) * size)
    share = size // micro_batches
    batches = [tiny.encoded_batch(positions[i : i + share]) for i in range(0, size, share)]
    return training_step(trainee, batches, place(step, size))


def everything(trainee: Trainee) -> dict[str, Tensor]:
    """Copies of weights, EMA and optimizer states."""
    state = tiny.weights_of(trainee)
    if trainee.ema is not None:
        state |= {f"ema/{i}": p.clone() for i, p in enumerate(trainee.ema.shadow_params)}
    for name, parameter in trainee.parameters().items():
        state |= {f"{name}/{key}": v.clone() for key, v in trainee.optimizer.state.get(parameter, {}).items()}
    return state


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


# --- purity ------------------------------------------------------------------------------------------------------


def test_every_weight_moves(hub_folder: Path) -> None:
    """A step that returns a loss and changes nothing is a real fault of public code."""
    trainee = tiny.trainee_of(hub_folder)
    before = everything(trainee)
    take_step(trainee, 0)
    after = everything(trainee)
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_same_step_same_numbers(hub_folder: Path) -> None:
    """The global random state has no say."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainee = tiny.trainee_of(hub_folder)
        outcomes = [take_step(trainee, step) for step in range(2)]
        results.append((outcomes, everything(trainee)))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_is_one_batch(hub_folder: Path, micro_batches: int) -> None:
    gradients = []
    for pieces in (1, micro_batches):
        trainee = tiny.trainee_of(hub_folder)
        batches = [tiny.encoded_batch(list(range(4))[i::pieces]) for i in range(pieces)]
        losses = forward_backward(trainee, trainee.model, batches, place(0))
        gradients.append((losses.sort().values, [p.grad for p in trainee.unet.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_noise_belongs_to_the_position_and_t_to_the_place_in_the_step(hub_folder: Path) -> None:
    """A sample has the same loss alone, in any order, and on any rank of the same step."""
    trainee = tiny.trainee_of(hub_folder)
    with torch.no_grad():
        together = objective_loss(trainee, trainee.model, tiny.encoded_batch([8, 9, 10, 11]), place(2))
        alone = objective_loss(trainee, trainee.model, tiny.encoded_batch([10]), place(2))
        turned = objective_loss(trainee, trainee.model, tiny.encoded_batch([11, 8]), place(2))
        elsewhere = objective_loss(
            trainee, trainee.model, tiny.encoded_batch([10]).at_positions(torch.tensor([9])), place(2)
        )
        another_step = objective_loss(trainee, trainee.model, tiny.encoded_batch([10]), StepPlace(3, 8, 4))
    torch.testing.assert_close(alone, together[2:3])
    torch.testing.assert_close(turned, together[[3, 0]])
    assert not torch.allclose(elsewhere, alone)
    assert not torch.allclose(another_step, alone)


def test_every_sample_has_its_own_noise_which_follows_it(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With data at zero x_t is (1 - t) noise: one noise per position, whatever the step and the neighbours are."""
    trainee = tiny.trainee_of(hub_folder)
    seen: list[Tensor] = []

    def watched(model: Any, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        seen.append(x_t / (timesteps / 1000).view(-1, 1, 1, 1))
        return x_t

    monkeypatch.setattr("shadowlab.training.step.predict", watched)
    for positions, at in (([0, 1, 2, 3], place(0)), ([3, 1], StepPlace(9, 0, 4))):
        batch = tiny.encoded_batch(positions)
        batch.data.zero_()
        objective_loss(trainee, trainee.model, batch, at)
    first, again = seen
    torch.testing.assert_close(again, first[[3, 1]])
    assert torch.pdist(first.flatten(1)).min() > 1


def test_the_loss_of_a_model_that_knows_the_velocity_is_zero(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x_t, t and the target belong together: from x_t, t and the data alone the velocity follows."""
    trainee = tiny.trainee_of(hub_folder)
    batch = tiny.encoded_batch([0, 1, 2, 3])

    def oracle(model: Any, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return (batch.data - x_t) / (timesteps / 1000).view(-1, 1, 1, 1)

    monkeypatch.setattr("shadowlab.training.step.predict", oracle)
    assert objective_loss(trainee, trainee.model, batch, place(0)).max() < 1e-8


def test_loss_is_reported_before_and_norm_before_clipping(hub_folder: Path) -> None:
    free = tiny.trainee_of(hub_folder, "optimizer.max_grad_norm=null")
    clipped = tiny.trainee_of(hub_folder, "optimizer.max_grad_norm=0.01")
    first, second = take_step(free, 0), take_step(clipped, 0)
    assert first == second
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in clipped.unet.parameters()]))
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    full = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in free.unet.parameters()]))
    assert float(full) == pytest.approx(first.grad_norm, rel=1e-5)


def test_clipping_is_torchs(hub_folder: Path) -> None:
    trainee = tiny.trainee_of(hub_folder, "optimizer.max_grad_norm=0.5")
    reference = tiny.trainee_of(hub_folder)
    forward_backward(reference, reference.model, [tiny.encoded_batch(range(4))], place(0))
    torch.nn.utils.clip_grad_norm_(reference.unet.parameters(), 0.5)
    take_step(trainee, 0)
    ours, theirs = [p.grad for p in trainee.unet.parameters()], [p.grad for p in reference.unet.parameters()]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_watching_changes_no_weight(hub_folder: Path, precision: str) -> None:
    states = []
    for watched in (False, True):
        trainee = tiny.trainee_of(hub_folder, f"precision={precision}")
        layers, parameters = LayerStatistics(trainee.unet), ParameterStatistics(trainee.unet)
        for step in range(3):
            batches = [tiny.encoded_batch(range(step * 4, step * 4 + 4))]
            if watched:
                with layers.recording():
                    training_step(trainee, batches, place(step), parameter_statistics=parameters)
                assert len(layers.collect()) > 50
                assert len(parameters.collect()) == len(trainee.parameters())
            else:
                training_step(trainee, batches, place(step))
        states.append(everything(trainee))
    assert_equal(*states)


# --- nothing bad is kept -----------------------------------------------------------------------------------------


def refused(trainee: Trainee, batches: list[Any], step: int = 1) -> NonFiniteError:
    """The error of a step that must leave weights, EMA and optimizer as they were."""
    before = everything(trainee)
    with pytest.raises(NonFiniteError) as caught:
        training_step(trainee, batches, place(step))
    after = everything(trainee)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.nan_to_num(nan=7.0), after[name].nan_to_num(nan=7.0)), name
    assert all(p.grad is None for p in trainee.unet.parameters())
    assert f"of step {step + 1}" in str(caught.value)
    assert caught.value.verdict.step == step
    assert caught.value.verdict.reproducible
    return caught.value


@pytest.fixture
def trainee(hub_folder: Path) -> Trainee:
    """After one good step, so that there are optimizer states to spoil."""
    trainee = tiny.trainee_of(hub_folder)
    take_step(trainee, 0)
    return trainee


@pytest.mark.parametrize("tensor", ["data", "concatenated", "embedding"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_sample_is_named(trainee: Trainee, tensor: str, value: float) -> None:
    good, bad = tiny.encoded_batch([4, 5]), tiny.encoded_batch([6, 7])
    bad.tensors()[tensor][1].view(-1)[3] = value
    error = refused(trainee, [good, bad])
    assert (error.verdict.phase, error.verdict.parameter) == ("data", f"1.{tensor}")
    assert error.verdict.sample_ids == ("sample_7",)
    assert "sample_7" in str(error)
    assert "sample_6" not in str(error)


def test_a_bad_parameter_is_named(trainee: Trainee) -> None:
    with torch.no_grad():
        trainee.unet.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = float("nan")
    error = refused(trainee, [tiny.encoded_batch([4, 5])])
    assert (error.verdict.phase, error.verdict.parameter) == ("state", "mid_block.resnets.0.conv1.weight")
    assert error.verdict.sample_ids == ()


def test_an_overflow_in_the_forward_is_named(trainee: Trainee) -> None:
    with torch.no_grad():
        trainee.unet.mid_block.resnets[0].conv1.weight.fill_(3e38)
    error = refused(trainee, [tiny.encoded_batch([4, 5])])
    assert (error.verdict.phase, error.verdict.module) == ("forward", "mid_block.resnets.0.conv1")
    assert (error.verdict.exception, error.verdict.cause) == ("overflow", "overflow")
    assert "mid_block.resnets.0.conv1" in str(error)


def test_an_overflow_for_one_sample_names_it(trainee: Trainee) -> None:
    batch = tiny.encoded_batch([4, 5, 6, 7])
    batch.conditions.concatenated[2] = 3e38
    with torch.no_grad():
        trainee.unet.conv_in.weight[:, 4:] = 1e3
    error = refused(trainee, [batch])
    assert (error.verdict.phase, error.verdict.module) == ("forward", "conv_in")
    assert error.verdict.sample_ids == ("sample_6",)


class _InfiniteSlope(nn.Module):
    """x + sqrt(|x| * 0): the value is right, the slope at zero is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x * 0).abs().sqrt()


def test_a_bad_gradient_with_a_good_loss_is_named(trainee: Trainee) -> None:
    trainee.unet.conv_act = nn.Sequential(nn.SiLU(), _InfiniteSlope())
    error = refused(trainee, [tiny.encoded_batch([4, 5])])
    assert (error.verdict.phase, error.verdict.module) == ("backward", "conv_act.1")
    assert error.verdict.exception in ("divide_by_zero", "invalid")
    line = error.verdict.source
    assert line is not None and line.startswith(__file__)
    assert "sqrt" in Path(__file__).read_text().splitlines()[int(line.rpartition(":")[2]) - 1]


def test_a_target_that_overflows_the_loss(trainee: Trainee) -> None:
    batch = tiny.encoded_batch([4, 5])
    batch.data[1] = 3e19  # its square is beyond float32
    trainee.unet.conv_in.weight.data[:, :4] = 0  # the model itself does not feel it
    error = refused(trainee, [batch])
    assert error.verdict.phase == "loss"
    assert error.verdict.sample_ids == ("sample_5",)


def test_after_a_refused_step_training_goes_on(trainee: Trainee, hub_folder: Path) -> None:
    bad = tiny.encoded_batch([4, 5, 6, 7])
    bad.data[0] = float("nan")
    refused(trainee, [bad])
    untouched = tiny.trainee_of(hub_folder)
    take_step(untouched, 0)
    assert take_step(trainee, 1) == take_step(untouched, 1)
    assert_equal(everything(trainee), everything(untouched))


def test_half_weights_under_adamw_are_undone(hub_folder: Path) -> None:
    """The seeds' failure: eps rounds to zero in float16, and AdamW divides by it."""
    trainee = tiny.trainee_of(hub_folder, "precision=fp16-pure", "allow_unsafe=true")
    before = everything(trainee)
    with pytest.raises(NonFiniteError) as caught:
        take_step(trainee, 0)
    assert (caught.value.verdict.phase, caught.value.verdict.cause) == ("optimizer", "underflow")
    assert caught.value.verdict.parameter == next(iter(trainee.parameters()))
    assert_equal(before, everything(trainee))


# --- gradient scaler ---------------------------------------------------------------------------------------------


def test_overflowed_half_gradients_skip_and_are_counted(hub_folder: Path) -> None:
    trainee = tiny.trainee_of(hub_folder, "precision=fp16")
    assert trainee.scaler is not None
    take_step(trainee, 0)
    trainee.scaler.update(2.0**24)
    before, skipped = everything(trainee), 0
    while take_step(trainee, 1).skipped:
        skipped += 1
        assert trainee.scaler.get_scale() == 2.0 ** (24 - skipped)
        assert_equal(before, everything(trainee))
    assert skipped > 1
    after = everything(trainee)
    assert not [name for name, tensor in before.items() if torch.equal(tensor, after[name])]


def test_scaled_and_unscaled_steps_agree(hub_folder: Path) -> None:
    outcomes = {}
    for precision in ("fp32", "fp16", "bf16"):
        trainee = tiny.trainee_of(hub_folder, f"precision={precision}")
        if trainee.scaler is not None:
            take_step(trainee, 0)  # creates the scale
            trainee = tiny.trainee_of(hub_folder, f"precision={precision}")
            trainee.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        outcomes[precision] = take_step(trainee, 0)
    assert outcomes["fp16"].loss == pytest.approx(outcomes["fp32"].loss, rel=1e-2)
    assert outcomes["fp16"].grad_norm == pytest.approx(outcomes["fp32"].grad_norm, rel=2e-2)
    assert outcomes["bf16"].grad_norm == pytest.approx(outcomes["fp32"].grad_norm, rel=5e-2)


def test_the_scaler_may_not_skip_for_ever(hub_folder: Path) -> None:
    """Gradients that overflow float16 at every scale: counted at first, then explained."""
    trainee = tiny.trainee_of(hub_folder, "precision=fp16", "train.max_consecutive_skips=3")
    assert trainee.scaler is not None
    trainee.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert [take_step(trainee, step).skipped for step in (0, 1)] == [True, True]
    with pytest.raises(NonFiniteError) as caught:
        take_step(trainee, 2)
    assert (caught.value.verdict.phase, caught.value.verdict.exception) == ("backward", "overflow")
    assert trainee.watch.num_skipped == 3


def test_a_real_fault_behind_skipped_steps_is_named(hub_folder: Path) -> None:
    """A backward pass that is NaN at every scale looks like overflow to the scaler."""
    trainee = tiny.trainee_of(hub_folder, "precision=fp16", "train.max_consecutive_skips=2")
    trainee.unet.conv_act = nn.Sequential(nn.SiLU(), _InfiniteSlope())
    assert take_step(trainee, 0).skipped
    with pytest.raises(NonFiniteError) as caught:
        take_step(trainee, 1)
    assert (caught.value.verdict.phase, caught.value.verdict.module) == ("backward", "conv_act.1")


@pytest.mark.parametrize("bad", ["data", "parameter"])
def test_the_scaler_does_not_hide_what_no_scale_can_fix(hub_folder: Path, bad: str) -> None:
    trainee = tiny.trainee_of(hub_folder, "precision=fp16")
    take_step(trainee, 0)
    batch = tiny.encoded_batch([4, 5])
    if bad == "data":
        batch.data[1] = float("nan")
    else:
        trainee.unet.conv_out.bias.data[0] = float("inf")
    error = refused(trainee, [batch])
    assert error.verdict.phase == ("data" if bad == "data" else "state")
