"""The shadow task: what the model sees of a sample, and what it must not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.errors import UserError
from shadowlab.models.vae import load_vae, mask_to_latent
from shadowlab.settings import Config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.light import embed_light
from shadowlab.tasks.shadow.samples import Batch, collate
from shadowlab.tasks.shadow.task import ShadowTask
from tests import tiny


@pytest.fixture(scope="module")
def task(stage_folder: dict[str, Path]) -> ShadowTask:
    return open_task(Config(), vae=load_vae(str(stage_folder["vae"])))


@pytest.fixture(scope="module")
def batch(stage_folder: dict[str, Path]) -> Batch:
    dataset = open_dataset(stage_folder["data"], tiny.SIDE * 8)
    return collate([dataset[i] for i in range(3)])


def test_conditions_are_object_latent_then_mask(task: ShadowTask, batch: Batch) -> None:
    """The order is in every checkpoint: [x_t, object, mask]. Swapped, training looks well and nothing interchanges."""
    encoded = task.encode(batch)
    assert torch.equal(encoded.conditions.concatenated[:, :4], task.vae.encode(batch.object_image))
    assert torch.equal(encoded.conditions.concatenated[:, 4:], mask_to_latent(batch.mask))
    assert torch.equal(encoded.data, task.vae.encode_grey(batch.shadow))
    assert torch.equal(encoded.conditions.embedding, embed_light(batch.light))
    assert encoded.data.shape[1] + encoded.conditions.concatenated.shape[1] == task.spec.in_channels
    assert encoded.ids == batch.ids


def test_the_target_is_not_among_the_conditions(task: ShadowTask, batch: Batch) -> None:
    other = Batch(batch.ids, batch.object_image, batch.mask, 1 - batch.shadow, batch.light)
    first, second = task.encode(batch), task.encode(other)
    assert not torch.equal(first.data, second.data)
    assert torch.equal(first.conditions.concatenated, second.conditions.concatenated)
    assert torch.equal(first.conditions.embedding, second.conditions.embedding)


def test_all_is_float32_without_gradient(task: ShadowTask, batch: Batch) -> None:
    for tensor in task.encode(batch).tensors().values():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


def test_a_selection_keeps_samples_together(task: ShadowTask, batch: Batch) -> None:
    encoded = task.encode(batch, torch.tensor([7, 8, 9]))
    chosen = encoded.select(torch.tensor([2, 0]))
    assert chosen.ids == [batch.ids[2], batch.ids[0]]
    assert chosen.positions.tolist() == [9, 7]
    for name, tensor in chosen.tensors().items():
        assert torch.equal(tensor, encoded.tensors()[name][[2, 0]])
    assert encoded.at_positions(torch.tensor([1, 2, 3])).ids == batch.ids


@pytest.mark.parametrize(
    ("reach", "others"),
    [("near", {"theta": 33.75, "phi": 270.0, "size": 6.5}), ("far", {"theta": 45.0, "phi": 210.0, "size": 8.0})],
)
def test_a_probe_changes_one_condition(task: ShadowTask, batch: Batch, reach: Any, others: dict[str, float]) -> None:
    own = {"theta": 10.0, "phi": 30.0, "size": 3.0}
    light = torch.tensor([list(own.values())]).expand(len(batch), 3)
    batch = replace(batch, light=light)
    encoded = task.encode(batch)
    probes = task.probes(batch, encoded, reach)
    assert [probe.name for probe in probes] == list(own)
    for probe in probes:
        changed = own | {probe.name: others[probe.name]}
        wanted = embed_light(torch.tensor([list(changed.values())]).expand(len(batch), 3))
        assert torch.equal(probe.encoded.conditions.embedding, wanted)
        assert torch.equal(probe.encoded.conditions.concatenated, encoded.conditions.concatenated)
        assert torch.equal(probe.reference.conditions.embedding, encoded.conditions.embedding)
        assert probe.change == f"from {own[probe.name]:g} to {others[probe.name]:g}"


def test_light_out_of_range_is_refused(task: ShadowTask, batch: Batch) -> None:
    light = batch.light.clone()
    light[1, 0] = 50.0
    with pytest.raises(UserError, match=r"row 1: light theta = 50"):
        task.encode(Batch(batch.ids, batch.object_image, batch.mask, batch.shadow, light))
