"""Products in float32 of half-precision tensors: rounded once, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from shadowlab.stages.check_precision.half_products import Float32Products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_rounded_once(dtype: torch.dtype) -> None:
    """Each result is the float64 one to half a unit in the last place (and what float32 sums lose)."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 8, 6, 6), (4, 8, 3, 3)))
    matrix, bias = torch.randn(5, 72, generator=generator).to(dtype), torch.randn(5, generator=generator).to(dtype)

    def step(x: torch.Tensor, weight: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
        leaves = [one.clone().requires_grad_() for one in (x, weight, matrix, bias)]
        convolved = F.conv2d(leaves[0], leaves[1], padding=1)
        product = F.linear(leaves[0].flatten(1)[:, :72], leaves[2], leaves[3])
        grads = torch.autograd.grad(convolved.sum(), leaves[:2])
        return [convolved, product, *grads, *torch.autograd.grad(product.sum(), leaves[2:])]

    with Float32Products():
        seen = step(x, weight, matrix, bias)
    exact = step(x.double(), weight.double(), matrix.double(), bias.double())
    unit = torch.finfo(dtype).eps
    for one, wanted in zip(seen, exact, strict=True):
        assert one.dtype is dtype
        allowed = wanted.abs() * unit / 2 + 1e-5 * wanted.abs().max()
        assert bool(((one.double() - wanted).abs() <= allowed).all())


def test_a_sum_that_overflows_is_inf_and_float32_is_left_alone() -> None:
    large = torch.full((1, 4), 3e4, dtype=torch.float16)
    with Float32Products():
        assert torch.isinf(large @ torch.ones(4, 1, dtype=torch.float16)).all()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
