"""Gains of linear light: what they do, what undoes them, and what two classical guesses make of it."""

import pytest
import torch

from shadowlab.tasks.colour import to_linear
from shadowlab.tasks.editing import balanced, cast, fitted_gains
from shadowlab.tasks.editing.white_balance import clipped_share, grey_world, max_rgb

GAINS = torch.tensor([[1.6, 1.0, 0.7], [0.6, 1.0, 1.5]])


def pictures(most: float = 0.6) -> torch.Tensor:
    """(2, 3, 16, 16) in [0.05, most]."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * (most - 0.05) + 0.05


WHOLE = torch.ones(2, 1, 16, 16)


def test_gains_multiply_light_and_cut_off_at_white() -> None:
    given = pictures(1.0)
    found = cast(given, GAINS)
    wanted = (to_linear(given) * GAINS[..., None, None]).clamp(max=1)
    assert torch.allclose(to_linear(found), wanted, atol=1e-6)
    assert float(found.max()) == pytest.approx(1) and float(clipped_share(found, WHOLE).min()) > 0.05
    assert float(clipped_share(cast(pictures(0.3), GAINS), WHOLE).max()) == 0


def test_the_gains_that_are_fitted_undo_those_that_were_applied() -> None:
    target = pictures()
    under = cast(target, GAINS)
    assert torch.allclose(fitted_gains(under, target, WHOLE), 1 / GAINS, atol=1e-4)
    assert torch.allclose(balanced(under, target, WHOLE), target, atol=1e-4)


def test_what_is_cut_off_does_not_lead_the_fit_astray() -> None:
    target = pictures(1.0)
    under = cast(target, GAINS)
    assert float(clipped_share(under, WHOLE).min()) > 0.05
    assert torch.allclose(fitted_gains(under, target, WHOLE), 1 / GAINS, atol=1e-3)
    everything = torch.ones_like(target)
    assert torch.equal(fitted_gains(everything, target, WHOLE), torch.ones(2, 3))


def test_a_fit_looks_at_nothing_but_what_counts() -> None:
    target, counts = pictures(), WHOLE.clone()
    under = cast(target, GAINS)
    under[..., 8:], counts[..., 8:] = 0.5, 0
    assert torch.allclose(fitted_gains(under, target, counts), 1 / GAINS, atol=1e-4)
    assert not torch.allclose(fitted_gains(under, target, WHOLE), 1 / GAINS, atol=1e-2)


def test_a_painted_error_of_zero_mean_moves_the_gains_little() -> None:
    """The model's picture need not be sharp: three numbers are all that is taken of it."""
    target = pictures()
    under, rough = (
        cast(target, GAINS),
        target + 0.08 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1)),
    )
    result = balanced(under, rough.clamp(0, 1), WHOLE)
    assert float((result - target).square().mean()) < 0.1 * float((rough - target).square().mean())


@pytest.mark.parametrize("method", [grey_world, max_rgb])
def test_classical_guesses_are_right_where_their_guess_is(method) -> None:  # type: ignore[no-untyped-def]
    grey = pictures()[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(method(cast(grey, GAINS), WHOLE), grey, atol=1e-4)
    leaf = grey * torch.tensor([0.4, 1.0, 0.3]).view(1, 3, 1, 1)
    assert float((method(cast(leaf, GAINS), WHOLE) - leaf).abs().max()) > 0.1
