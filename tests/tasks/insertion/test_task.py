"""What the model is given and learns: one canvas, dropped objects, weighted regions, prompts."""

from typing import Any

import pytest
import torch

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import load_unet, loss_where_known, unwritten_unet
from shadowlab.models.unet import architecture_config
from shadowlab.settings import load_config
from shadowlab.tasks import Task, open_task
from shadowlab.tasks.insertion.layout import composited, halves, joined, latent_mask
from shadowlab.tasks.insertion.metrics import per_image_metrics
from shadowlab.tasks.insertion.task import InsertionTask
from tests.tasks.insertion.rows import batch_of

CPU = torch.device("cpu")


def task_of(*words: str, vae: bool = True) -> Task[Any]:
    random = ["model.weights=random", "data.image_size=32", "device=cpu"]
    return open_task(load_config(preset="insertion-tiny", assignments=[*random, *words]), CPU if vae else None)


@pytest.mark.parametrize("beside", ["height", "width"])
def test_the_object_stands_next_to_the_target_clean(beside: Any) -> None:
    task, batch = task_of(f"task_options.model.beside={beside}"), batch_of(2)
    encoded = task.encode(batch)
    assert encoded.data.shape == ((2, 4, 8, 4) if beside == "height" else (2, 4, 4, 8))
    given = encoded.conditions.concatenated
    assert given is not None and given.shape[1] == 5
    (target, own), (first, second) = halves(encoded.data, beside), halves(given, beside)
    assert torch.equal(joined(target, own, beside), encoded.data)
    assert torch.equal(target, task.vae.encode(batch.target * 2 - 1))
    assert torch.equal(first[:, :1], latent_mask(batch.mask)) and not second[:, :1].any()
    assert torch.equal(second[:, 1:], own)
    grey = torch.where(batch.mask > 0, 0.5, batch.target)
    assert torch.allclose(first[:, 1:], task.vae.encode(grey * 2 - 1), atol=1e-5)
    assert torch.equal(task.decode(encoded.data), ((task.vae.decode(target) + 1) / 2).clamp(0, 1))


@pytest.mark.parametrize("value", ["channels", "channel", "1"])
def test_channels_are_refused_with_the_reason(value: str) -> None:
    with pytest.raises(UserError, match="9 input channels.*would make 18.*height or width"):
        task_of(f"task_options.model.beside={value}", vae=False)


def test_objects_are_dropped_by_seed_and_position_alone() -> None:
    task = task_of("task_options.model.condition_dropout=0.3")
    augmentation: Any = task.augmentation
    dropped = [position for position in range(400) if not augmentation.sample(_sample(), position).shown]
    assert 80 < len(dropped) < 160
    assert dropped == [
        p for p in range(400) if not float(augmentation.numbers({"shown": torch.tensor(1.0)}, p)["shown"])
    ]
    again: Any = task_of("task_options.model.condition_dropout=0.3", vae=False).augmentation
    other: Any = task_of("task_options.model.condition_dropout=0.3", "seed=1", vae=False).augmentation
    assert dropped == [p for p in range(400) if not again.sample(_sample(), p).shown]
    assert dropped != [p for p in range(400) if not other.sample(_sample(), p).shown]
    assert task_of(vae=False).augmentation is None
    shown, blind = batch_of(1), batch_of(1).select(torch.tensor([0]))
    blind.shown.zero_()
    one, none = (task.encode(batch).conditions.concatenated for batch in (shown, blind))
    assert one is not None and none is not None
    (target, own), (same, nothing) = halves(one, "width"), halves(none, "width")
    assert torch.equal(target, same) and own[:, 1:].any() and not nothing.any()


def _sample() -> Any:
    from shadowlab.tasks.insertion import InsertionSample

    batch = batch_of(1)
    return InsertionSample("a", "a", batch.target[0], batch.object[0], batch.mask[0])


def test_the_region_is_weighted_in_the_loss_and_reported_apart() -> None:
    plain, heavy = task_of(), task_of("task_options.model.region_weight=5")
    batch = batch_of(2)
    encoded, weighted = plain.encode(batch), heavy.encode(batch)
    assert encoded.valid is None and weighted.valid is not None
    regions: dict[str, torch.Tensor] = plain.regions(encoded)  # type: ignore[attr-defined]
    assert torch.equal(weighted.valid, 1 + 4 * regions["inserted"])
    target, own = halves(regions["target"], "width")
    assert target.all() and not own.any()
    noise, predicted, t = torch.randn_like(encoded.data), torch.randn_like(encoded.data), torch.tensor([0.2, 0.7])
    error = (predicted - plain.objective.target(noise, encoded.data, t)).square()
    loss = loss_where_known(heavy.objective, predicted, noise, encoded.data, t, weighted.valid)
    wanted = (error * weighted.valid).flatten(1).mean(1) / weighted.valid.flatten(1).mean(1)
    assert torch.allclose(loss, wanted, rtol=1e-4)
    inside = loss_where_known(plain.objective, predicted, noise, encoded.data, t, regions["inserted"])
    masked = (error * regions["inserted"]).flatten(1).sum(1) / (4 * regions["inserted"].flatten(1).sum(1))
    assert torch.allclose(inside, masked, rtol=1e-4)


def test_a_weighted_batch_keeps_its_weights_when_it_is_resized() -> None:
    weights = torch.tensor([1.0, 3.0]).repeat_interleave(8).expand(1, 1, 16, 16).contiguous()
    data = torch.zeros(1, 4, 16, 16)
    encoded = EncodedBatch(
        ["a"], torch.zeros(1, dtype=torch.int64), data, task_of().encode(batch_of(1)).conditions, weights
    )
    found = encoded.resized(4).valid
    assert found is not None and torch.equal(found, torch.tensor([1.0, 1.0, 3.0, 3.0]).expand(1, 1, 4, 4))


def test_each_row_may_be_told_its_own_prompt_and_a_wrong_width_is_refused() -> None:
    from dataclasses import replace

    task, batch = task_of(), batch_of(2)
    empty = task.encode(batch).conditions.tokens
    assert empty is not None and torch.equal(empty[0], empty[1])
    own = torch.randn(2, 5, 64)
    told = task.encode(replace(batch, prompt=own)).conditions.tokens
    assert told is not None and torch.equal(told, own)
    with pytest.raises(UserError, match="768 wide, and the model's cross-attention takes 64"):
        task.encode(replace(batch, prompt=torch.randn(2, 5, 768)))


def test_sd15_inpainting_has_its_published_parameters_and_self_attention_alone_trains() -> None:
    with torch.device("meta"):
        unet = unwritten_unet(architecture_config("sd15-inpainting"), InsertionTask.spec)
    counts = [(name, p.numel()) for name, p in unet.named_parameters()]
    assert (sum(n for _, n in counts), len(counts)) == InsertionTask.spec.published["sd15-inpainting"]
    assert unet.conv_in.in_channels == 9 and not hasattr(unet.conv_in, "widened_from")
    attention = [n for name, n in counts if ".attn1." in name]
    assert (sum(attention), len(attention)) == (49_574_080, 80)
    assert InsertionTask.spec.published_trainable["sd15-inpainting"] == (49_574_080, 80)


def test_nine_channels_that_are_there_are_not_widened() -> None:
    unet = load_unet("random", "tiny-inpainting", InsertionTask.spec, seed=0)
    assert unet.conv_in.in_channels == 9 and not hasattr(unet.conv_in, "widened_from")
    assert bool((unet.conv_in.weight[:, 4:] != 0).all())


def test_metrics_look_at_the_mask_alone_and_over_all_at_the_composite() -> None:
    batch = batch_of(2)
    made = torch.rand_like(batch.target)
    found = per_image_metrics(made, batch.target, batch.mask)
    spoilt = torch.where(batch.mask > 0, made, torch.rand_like(made))
    assert all(
        torch.equal(found[name], one) for name, one in per_image_metrics(spoilt, batch.target, batch.mask).items()
    )
    share = batch.mask.flatten(1).mean(1)
    assert torch.allclose(found["rmse"], found["rmse_inside"] * share.sqrt(), rtol=1e-5)
    assert (per_image_metrics(batch.target, batch.target, batch.mask)["psnr_inside"] == 100).all()
    with pytest.raises(ValueError, match="empty"):
        per_image_metrics(made, batch.target, torch.zeros_like(batch.mask))


def test_a_composite_is_the_given_picture_outside_bit_for_bit() -> None:
    task, batch = task_of(), batch_of(3)
    made = torch.rand_like(batch.target)
    finished = task.finished(made, batch)  # type: ignore[attr-defined]
    outside = (batch.mask == 0).expand_as(made)
    assert torch.equal(finished[outside], batch.target[outside]) and torch.equal(finished[~outside], made[~outside])
    assert torch.equal(composited(made, batch.target, batch.mask), finished)
    for name, predict in task.evaluation.baselines.items():
        picture = predict(batch)
        assert torch.equal(picture[outside], batch.target[outside]), name
        assert not torch.equal(picture[~outside], batch.target[~outside]), name
