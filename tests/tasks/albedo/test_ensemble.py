"""Several predictions to one: better than the mean of the singles, as diffusers does it, and nothing is aligned."""

import pytest
import torch

from shadowlab.errors import UserError
from shadowlab.seeding import normal
from shadowlab.tasks.albedo.ensemble import REDUCTIONS, Reduction, ensembled
from shadowlab.tasks.albedo.metrics import per_image_metrics
from tests.tasks.albedo.pairs import batch_of


def predictions(count: int, strength: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, H, W) around a truth (3, H, W)."""
    truth = batch_of(1).albedo[0]
    return (truth + strength * normal((count, *truth.shape), 0, "members")).clamp(0, 1), truth


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_eight_have_a_lower_error_than_the_mean_of_the_singles(reduction: Reduction) -> None:
    members, truth = predictions(8)
    valid = torch.ones(8, 1, *truth.shape[1:])
    singles = per_image_metrics(members, truth.expand_as(members), valid, "srgb")["rmse"].mean()
    together = ensembled(members, reduction).prediction[None]
    assert per_image_metrics(together, truth[None], valid[:1], "srgb")["rmse"] < 0.7 * singles


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_it_is_what_diffusers_makes(reduction: Reduction, count: int) -> None:
    marigold = pytest.importorskip("diffusers").MarigoldIntrinsicsPipeline
    members, _ = predictions(count)
    wanted, spread = marigold.ensemble_intrinsics(members[:, None], output_uncertainty=True, reduction=reduction)
    found = ensembled(members, reduction)
    assert torch.equal(found.prediction, wanted[0])
    assert found.uncertainty is not None and torch.equal(found.uncertainty, spread[0])


def test_the_uncertainty_is_high_where_predictions_differ() -> None:
    members, _ = predictions(8, 0.0)
    members = members.clone()
    members[:, :, :8] = (members[:, :, :8] + 0.3 * normal((8, 3, 8, 32), 0, "more")).clamp(0, 1)
    for reduction in REDUCTIONS:
        spread = ensembled(members, reduction).uncertainty
        assert spread is not None and spread[:, :8].mean() > 0.05 and spread[:, 8:].max() == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scale_and_shift_are_not_aligned(reduction: Reduction) -> None:
    """Of depth they would be: an albedo that is twice as bright is another albedo."""
    members, _ = predictions(4, 0.02)
    members = members * torch.tensor([0.4, 0.6, 0.8, 1.0]).view(4, 1, 1, 1)
    found = ensembled(members, reduction)
    assert torch.allclose(
        found.prediction,
        getattr(torch, reduction)(members, dim=0) if reduction == "mean" else members.median(dim=0).values,
    )
    assert found.uncertainty is not None and found.uncertainty.mean() > 0.02


def test_one_has_no_uncertainty_and_none_or_another_reduction_are_refused() -> None:
    members, _ = predictions(1)
    assert ensembled(members).uncertainty is None and torch.equal(ensembled(members).prediction, members[0])
    with pytest.raises(UserError, match="mean or median"):
        ensembled(members, "mode")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="N at least 1"):
        ensembled(members[:0])
