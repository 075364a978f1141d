"""What is advised looks at the case: an eps that no precision can hold asks for another eps, not for another dtype."""

import pytest
import torch

from diagnostics import explain
from diagnostics.verdict import Verdict


def verdict(dtype: torch.dtype, eps: float, gradient: float, *, fused: bool) -> Verdict:
    """Of one AdamW step whose squared gradient vanishes in `dtype`."""
    layer = torch.nn.Linear(2, 1, bias=False).to(dtype)
    optimizer = torch.optim.AdamW(layer.parameters(), eps=eps, fused=fused)
    data = torch.full((1, 2), gradient, dtype=dtype)

    def step() -> None:
        optimizer.zero_grad()
        layer(data).sum().backward()
        optimizer.step()

    found = explain(step, model=layer, optimizer=optimizer)
    assert found is not None and found.cause == "underflow"
    return found


def test_an_eps_that_float32_holds_asks_for_float32() -> None:
    assert "float32 master weights" in verdict(torch.float16, 1e-8, 1e-4, fused=False).fix


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("eps", [1e-60, 0.0])
def test_an_eps_that_is_zero_in_float32_too_asks_for_another(eps: float, fused: bool) -> None:
    fix = verdict(torch.float32, eps, 1e-30, fused=fused).fix
    assert f"eps, {eps:g}, is zero in float32, too" in fix and "master weights" not in fix


def test_in_half_weights_as_well() -> None:
    fix = verdict(torch.float16, 1e-60, 1e-4, fused=False).fix
    assert "zero in float32, too" in fix and "master weights" not in fix
