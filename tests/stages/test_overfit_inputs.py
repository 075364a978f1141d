"""What overfit says of a model that uses an input, and of one that does not: by an oracle that uses some."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shadowlab.evaluation import FixedGrid, GridResult
from shadowlab.models import POLICIES
from shadowlab.stages.overfit.inputs import InputProofs, inputs_of, judge_inputs
from shadowlab.stages.overfit.pairs import first_stranger
from shadowlab.stages.overfit.samples import samples_to_memorise
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.samples import Batch, Sample
from shadowlab.tasks.shadow.task import ShadowTask
from tests import tiny

INPUTS = ("object", "mask", "theta", "phi", "size")
COUNT, SIDE = 4, tiny.SIDE * 8


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_vae(tmp_path_factory.mktemp("oracle") / "vae")


@pytest.fixture
def task(vae: Path) -> ShadowTask:
    opened: Any = open_task(
        tiny.config_of("random", f"model.vae={vae}", f"data.image_size={SIDE}"), torch.device("cpu")
    )
    return opened


def samples() -> Batch:
    """Four objects under four lights."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(COUNT, 1, SIDE, SIDE)
    for row in range(COUNT):
        masks[row, :, : 8 * (row + 1), 8 * row :] = 1
    light = torch.tensor([[5.0, 20.0, 2.5], [15.0, 110.0, 4.0], [30.0, 200.0, 5.5], [44.0, 290.0, 7.5]])
    return Batch(
        ids=[f"s{row}" for row in range(COUNT)],
        object_image=(torch.rand(COUNT, 3, SIDE, SIDE, generator=generator) * 2 - 1) * masks,
        mask=masks,
        shadow=torch.rand(COUNT, 1, SIDE, SIDE, generator=generator),
        light=light,
    )


class Oracle(nn.Module):
    """The samples by heart: a mean of the targets that each used input points to, and the velocity towards it."""

    def __init__(self, encoded: Any, uses: tuple[str, ...] = INPUTS, t: str = "told", x: bool = True) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self._data, self._uses, self._t, self._x = encoded.data, uses, t, x
        self._known = self._keys(encoded.conditions.concatenated, encoded.conditions.embedding)

    @staticmethod
    def _keys(concatenated: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        keys = {"object": concatenated[:, :4].flatten(1), "mask": concatenated[:, 4:].flatten(1)}
        return keys | dict(zip(INPUTS[2:], embedding.chunk(3, dim=1), strict=True))

    def forward(self, sample: Tensor, timesteps: Tensor, tokens: Any, class_labels: Tensor) -> Any:
        x_t, keys = sample[:, :4], self._keys(sample[:, 4:], class_labels)
        found = torch.zeros_like(x_t)
        for name in self._uses:
            far = torch.cdist(keys[name], self._known[name])
            near = (far <= far.min(1, keepdim=True).values + 1e-4).float()
            found += torch.einsum("bn,n...->b...", near / near.sum(1, keepdim=True), self._data) / len(self._uses)
        if not self._x:
            return SimpleNamespace(sample=found)
        t = 1 - timesteps / 1000 if self._t == "told" else torch.zeros_like(timesteps)
        return SimpleNamespace(sample=(found - x_t) / (1 - t).view(-1, 1, 1, 1))


def grid_of(task: ShadowTask, batch: Batch) -> FixedGrid:
    return FixedGrid(task, batch, timesteps=(0.0, 0.25, 0.5, 0.75, 0.95), num_noises=1, seed=0, chunk=2)


def judged(grid: FixedGrid, model: nn.Module, *, r2: float = 0.96, num_objects: int = COUNT) -> InputProofs:
    result = GridResult(0.0, {}, r2, {}, {}, torch.zeros(1), {})
    ablations = inputs_of(grid)
    precision = POLICIES["fp32"]
    return judge_inputs(grid, result, ablations, model, precision, num_objects=num_objects, noise_share=0.0)


def failed(proofs: InputProofs) -> list[str]:
    return [row.input for row in proofs.failed]


def test_a_model_that_uses_all_passes_and_each_input_has_its_figure(task: ShadowTask) -> None:
    grid = grid_of(task, samples())
    proofs = judged(grid, Oracle(grid.encoded))
    assert failed(proofs) == [], proofs.message()
    assert [row.input for row in proofs.rows] == [*INPUTS, "x_t", "t"]
    assert all(row.judged and "%" in row.seen for row in proofs.rows[:5])


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_left_out_is_named_and_no_other(task: ShadowTask, name: str) -> None:
    grid = grid_of(task, samples())
    proofs = judged(grid, Oracle(grid.encoded, tuple(one for one in INPUTS if one != name)))
    assert failed(proofs) == [name]
    assert f"does not come from {name}: {name}: the loss at t = 0 grows by 0 % exchanged" in proofs.message()
    assert [row["input"] for row in proofs.to_json() if not row["passed"]] == [name]


@pytest.mark.parametrize("name", ["object", "mask"])
def test_what_the_encoding_loses_is_not_taken_for_a_constant(
    task: ShadowTask, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures differ, what becomes of them does not."""
    original = task.encode_part

    def without(part: str, batch: Batch) -> Tensor:
        latents = original(part, batch).clone()
        if part == "concatenated":
            latents[:, slice(0, 4) if name == "object" else slice(4, 5)] *= 0
        return latents

    monkeypatch.setattr(task, "encode_part", without)
    grid = grid_of(task, samples())
    assert failed(judged(grid, Oracle(grid.encoded))) == [name]


def test_what_is_the_same_in_all_samples_is_not_judged_but_for_what_objects_differ_in(task: ShadowTask) -> None:
    batch = samples()
    batch.light[:, 0] = 20.0
    grid = grid_of(task, batch)
    theta = judged(grid, Oracle(grid.encoded)).rows[2]
    assert theta.passed and not theta.judged and "the same in all 4 samples" in theta.seen
    same = replace(samples(), object_image=samples().object_image[:1].expand(COUNT, -1, -1, -1).clone())
    grid = grid_of(task, same)
    assert failed(judged(grid, Oracle(grid.encoded))) == ["object"]
    assert failed(judged(grid, Oracle(grid.encoded), num_objects=1)) == []


def test_x_t_and_t_are_judged_by_what_a_model_reaches_without_them(
    task: ShadowTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(task, samples())
    assert "x_t" in failed(judged(grid, Oracle(grid.encoded, x=False)))
    always_noise = judged(grid, Oracle(grid.encoded, t="none"))
    assert failed(always_noise) == ["t"] and "takes x_t for noise" in always_noise.message()
    precision = POLICIES["fp32"]
    assert grid.answer_to_t(Oracle(grid.encoded, t="none"), precision, 0.75) == 0.0
    assert grid.answer_to_t(Oracle(grid.encoded), precision, 0.75) > 0.5
    monkeypatch.setattr(grid, "answer_to_t", lambda *_: 0.0)
    told_nothing = judged(grid, Oracle(grid.encoded))
    assert failed(told_nothing) == ["t"] and "changes by 0 of itself" in told_nothing.message()


def test_a_result_that_is_not_memorised_is_not_judged(task: ShadowTask) -> None:
    grid = grid_of(task, samples())
    proofs = judged(grid, Oracle(grid.encoded, ("object",)), r2=0.3)
    assert proofs.passed and not any(row.judged for row in proofs.rows) and "R^2 is 0.3" in proofs.text()


def test_one_sample_or_a_task_without_ablations_asks_nothing(task: ShadowTask) -> None:
    alone = grid_of(task, samples().select(torch.tensor([0])))
    assert inputs_of(alone) == []
    grid = grid_of(task, samples())
    grid.task = SimpleNamespace()  # type: ignore[assignment]
    assert inputs_of(grid) == []


class Listed(list[Sample]):
    """A data set of the samples of a batch."""

    def __init__(self, batch: Batch, object_ids: list[str] | None = None) -> None:
        self.ids = list(batch.ids)
        self.object_ids = object_ids or list(batch.ids)
        self._lights = batch.light.tolist()
        super().__init__(
            Sample(name, f"o{i}", batch.object_image[i], batch.mask[i], batch.shadow[i], batch.light[i])
            for i, name in enumerate(batch.ids)
        )

    def entry(self, i: int) -> Any:
        return SimpleNamespace(values=tuple(self._lights[i]))


@pytest.mark.parametrize("part", ["", "light", "mask", "shadow"])
def test_a_batch_that_exchanges_its_samples_inputs_is_found_before_anything_is_trained(
    task: ShadowTask, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, original = Listed(samples()), ShadowTask.collate

    def mixed(items: Any) -> Batch:
        batch = original(items)
        return replace(batch, **{part: getattr(batch, part).roll(1, 0)}) if part else batch

    monkeypatch.setattr(ShadowTask, "collate", staticmethod(mixed))
    dataset: Any = data
    grid = grid_of(task, task.collate(list(data)))
    stranger = first_stranger(task, dataset, range(COUNT), grid.encoded, "the batch")
    named = {"": None, "light": "embedding", "mask": "concatenated", "shadow": "data"}[part]
    assert stranger is None if named is None else stranger is not None and f"{named} of s0" in stranger


@pytest.mark.parametrize(("count", "objects"), [(1, 1), (2, 1), (4, 2), (8, 3), (16, 4), (24, 6)])
def test_a_few_objects_with_several_samples_each(count: int, objects: int) -> None:
    """8 objects under the same 4 lights: what is chosen shares its lights, too."""
    many = Batch(
        ids=[f"s{i:02d}" for i in range(32)],
        object_image=torch.zeros(32, 3, 8, 8),
        mask=torch.zeros(32, 1, 8, 8),
        shadow=torch.zeros(32, 1, 8, 8),
        light=torch.tensor([[float(i % 4), 0.0, 2.0] for i in range(32)]),
    )
    dataset: Any = Listed(many, [f"o{i // 4}" for i in range(32)])
    chosen = samples_to_memorise(dataset, count, seed=0)
    assert len(set(chosen)) == count and chosen == sorted(chosen)
    of_object = {name: [i % 4 for i in chosen if dataset.object_ids[i] == name] for name in dataset.object_ids}
    drawn = [lights for lights in of_object.values() if lights]
    assert len(drawn) == objects
    assert all(set(lights) <= set(max(drawn, key=len)) for lights in drawn)
    assert chosen != samples_to_memorise(dataset, count, seed=1) or count > 16
