"""Deviations against closed forms, and traces that see every layer once."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diagnostics.statistics.comparison import LayerTrace, deviation


def test_error_is_relative_to_the_reference():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    seen = deviation([torch.tensor([3.0, 4.5])], [reference])
    assert seen.relative_error == pytest.approx(0.1)
    assert seen.headroom_bits == pytest.approx(math.log2(torch.finfo(torch.float32).max / 4.5))
    assert (seen.underflow, seen.num_nonfinite) == (0.0, 0)


def test_a_scale_is_taken_out_of_the_error_alone():
    reference = torch.full((4,), 0.5)
    seen = deviation([(reference * 1024).half()], [reference], scale=1024.0)
    assert seen.relative_error == 0.0
    assert seen.headroom_bits == pytest.approx(math.log2(65504 / 512))


def test_what_becomes_subnormal_or_zero_underflows():
    reference = torch.tensor([1.0, 1e-5, 1e-9, 0.0, 1e-320], dtype=torch.float64)  # the last is subnormal there, too
    assert deviation([reference.half()], [reference]).underflow == pytest.approx(2 / 3)
    assert deviation([reference.float()], [reference]).underflow == 0.0


def test_not_finite_is_counted_and_leaves_no_headroom():
    seen = deviation([torch.tensor([1.0, math.inf, math.nan])], [torch.ones(3)])
    assert seen.num_nonfinite == 2
    assert seen.headroom_bits == -math.inf
    assert not math.isfinite(seen.relative_error)


def test_zeros():
    assert deviation([torch.zeros(2)], [torch.zeros(2)]).relative_error == 0.0
    assert deviation([torch.zeros(2)], [torch.zeros(2)]).headroom_bits == math.inf
    assert deviation([torch.ones(2)], [torch.zeros(2)]).relative_error == math.inf


def test_other_calls_are_no_comparison():
    with pytest.raises(ValueError, match="same calls"):
        deviation([torch.ones(2)], [torch.ones(3)])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_trace_has_each_call_once_with_its_gradient(checkpointed: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.randn(4, 2)
    trace = LayerTrace(model)
    with trace.recording():
        y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        y.sum().backward()
    assert [len(trace.activations[name]) for name in ("0", "1", "2")] == [1, 1, 1]
    assert torch.equal(trace.activations["2"][0], y)
    assert torch.equal(trace.gradients["2"][0], torch.ones(4, 1))
    hidden = model[1](model[0](x))
    assert torch.allclose(trace.gradients["0"][0], model[2].weight * (1 - hidden.square()))
    model(x)
    assert len(trace.activations["0"]) == 1
