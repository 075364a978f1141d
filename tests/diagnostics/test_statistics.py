"""Closed forms against float64, for every type and for what usually breaks them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics import TensorStatistics
from diagnostics.statistics import dense, moments, summarize

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

SHAPES = [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 1, 4), (2, 2, 3, 3)]


@st.composite
def tensors(draw, bad: bool = False) -> Tensor:
    """Any dtype and shape; magnitudes from subnormal to the largest finite, mixed with ordinary ones and zeros."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(SHAPES))
    info = torch.finfo(dtype)
    extremes = [info.max, -info.max, info.tiny, info.smallest_normal / 4, 0.0, -0.0, 1.0]
    values = st.sampled_from(extremes) | st.floats(-1e3, 1e3)
    if bad:
        values |= st.sampled_from([math.nan, math.inf, -math.inf])
    numbers = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    tensor = torch.tensor(numbers, dtype=torch.float64).reshape(shape).to(dtype)
    return tensor.transpose(0, -1) if draw(st.booleans()) and tensor.ndim else tensor


def reference(tensor: Tensor) -> dict[str, float]:
    """Every statistic with Python's exact arithmetic."""
    values = [float(value) for value in tensor.double().flatten().tolist()]
    if not values:
        return {"norm": 0.0, "mean": 0.0, "std": 0.0, "max_abs": 0.0, "fraction_zero": 0.0, "num_nonfinite": 0}
    count = len(values)
    largest = max(abs(value) for value in values)
    scale = largest or 1.0
    mean = math.fsum(value / scale / count for value in values) * scale
    deviations = [value / scale - mean / scale for value in values]
    return {
        "norm": math.hypot(*values),
        "mean": mean,
        "std": math.sqrt(math.fsum(d * d for d in deviations) / count) * scale,
        "max_abs": largest,
        "fraction_zero": sum(value == 0 for value in values) / count,
        "num_nonfinite": 0,
    }


def assert_matches(seen: TensorStatistics, tensor: Tensor) -> None:
    expected = reference(tensor)
    largest = expected["max_abs"]
    close = 1e-5 if tensor.dtype is not torch.float64 else 1e-12
    assert seen.max_abs == largest
    if math.isfinite(expected["norm"]):
        assert seen.norm == pytest.approx(expected["norm"], rel=close, abs=0)
    assert seen.mean == pytest.approx(expected["mean"], rel=close, abs=largest * close)
    # documented: lost below 1e-3 of |mean| (float64: 1e-6)
    assert seen.std == pytest.approx(expected["std"], rel=close, abs=abs(seen.mean) * (1e-3 if close > 1e-9 else 1e-6))
    if largest < 1e12:  # documented: beyond, the smallest count as zero
        assert seen.fraction_zero == expected["fraction_zero"]
    assert seen.num_nonfinite == 0


@quick
@given(tensors())
def test_matches_float64(tensor: Tensor):
    assert_matches(TensorStatistics.of(tensor), tensor)


@quick
@given(tensors(bad=True))
def test_bad_values_are_counted_and_show(tensor: Tensor):
    seen = TensorStatistics.of(tensor)
    assert seen.num_nonfinite == int((~tensor.isfinite()).sum())
    if seen.num_nonfinite:
        assert not math.isfinite(seen.norm) and not math.isfinite(seen.max_abs) and not math.isfinite(seen.mean)
        assert math.isnan(seen.std) and math.isnan(seen.fraction_zero)
        assert math.isnan(seen.max_abs) == bool(tensor.isnan().any())


@quick
@given(st.lists(tensors(), min_size=1, max_size=4))
def test_merge_is_the_concatenation(parts: list[Tensor]):
    whole = torch.cat([part.double().flatten() for part in parts])
    (seen,) = summarize([[moments(part) for part in parts]])
    expected = reference(whole)
    assert seen.max_abs == expected["max_abs"]
    if math.isfinite(expected["norm"]):
        assert seen.norm == pytest.approx(expected["norm"], rel=1e-5, abs=0)
    assert seen.mean == pytest.approx(expected["mean"], rel=1e-5, abs=1e-5 * expected["max_abs"])
    assert seen.num_nonfinite == 0


def test_merge_of_good_and_bad():
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([math.inf, 0.0, -1.0])
    (seen,) = summarize([[moments(good), moments(bad), moments(torch.zeros(0))]])
    assert (seen.num_nonfinite, seen.norm, seen.mean) == (1, math.inf, math.inf)
    (both,) = summarize([[moments(bad), moments(-bad)]])
    assert math.isnan(both.mean) and both.max_abs == math.inf and both.num_nonfinite == 2
    (sick,) = summarize([[moments(good), moments(torch.tensor([math.nan]))]])  # nan after a number, and before
    assert math.isnan(sick.max_abs) and math.isnan(sick.norm)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_at_the_largest_values(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    seen = TensorStatistics.of(torch.full((1000,), largest, dtype=dtype))
    assert seen.num_nonfinite == 0
    assert seen.mean == pytest.approx(largest, rel=1e-5)
    assert seen.std == 0.0
    if dtype is not torch.float64:  # its norm is beyond float64 itself
        assert seen.norm == pytest.approx(largest * math.sqrt(1000), rel=1e-5)


@pytest.mark.parametrize("value", [1e-44, 1e-30, 1e-20, 0.1, 3.0, 65504.0, 1e20, 3e38])
def test_constants_have_no_spread(value: float):
    seen = TensorStatistics.of(torch.full((70_001,), value))
    assert seen.std == 0.0
    assert seen.norm == pytest.approx(float(torch.tensor(value).double()) * math.sqrt(70_001), rel=1e-5)


def test_mean_large_and_spread_small():
    """What cancellation leaves: right down to 1e-3 of the mean in float32, never nan."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, generator=generator, dtype=torch.float64)
    for ratio in (1.0, 1e-1, 1e-2):
        x = (1.0 + ratio * noise).float()
        assert TensorStatistics.of(x).std == pytest.approx(float(x.double().std(correction=0)), rel=2e-2)
    for ratio in (1e-4, 1e-6):
        assert 0.0 <= TensorStatistics.of((1.0 + ratio * noise).float()).std < 1e-3


def test_sums_of_a_large_tensor_keep_their_digits():
    """float32 lanes alone lose 1e-4 here."""
    x = torch.rand(3_000_001, generator=torch.Generator().manual_seed(1)) + 1
    seen = TensorStatistics.of(x)
    assert seen.norm == pytest.approx(float(torch.linalg.vector_norm(x.double())), rel=2e-6)
    assert seen.mean == pytest.approx(float(x.double().mean()), rel=1e-6)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(24.0).reshape(2, 3, 4)[:, ::2, 1:],
        torch.tensor(2.0).expand(3, 5),
        torch.arange(48.0).reshape(1, 4, 3, 4).contiguous(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3, 1).expand(2, 3, 4),
        torch.arange(6.0).flip(0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_strides(tensor: Tensor, dtype: torch.dtype):
    x = tensor.to(dtype)
    before = x.clone()
    assert_matches(TensorStatistics.of(x), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_operators_and_no_boolean_temporary(dtype: torch.dtype):
    """What a measured tensor costs: on an accelerator each operator is a launch, on the CPU masks are the slow part."""
    results = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            results.append(result)
            return result

    with Operators():
        moments(torch.ones(2, 3, 4, dtype=dtype))
    assert len(results) <= 15
    assert not any(isinstance(x, Tensor) and x.dtype is torch.bool for x in results)


class TestUnusualTensors:
    def test_complex_parts(self):
        x = torch.tensor([3 + 4j, 0j])
        seen = TensorStatistics.of(x.conj())
        assert (seen.norm, seen.max_abs, seen.fraction_zero) == (5.0, 4.0, 0.5)

    @pytest.mark.filterwarnings("ignore:Sparse CSR")
    def test_sparse_stored_values(self):
        x = torch.sparse_coo_tensor([[1, 1, 4]], [1.0, 2.0, 4.0], (9,), check_invariants=True)
        seen = TensorStatistics.of(x)
        assert (seen.norm, seen.fraction_zero) == (5.0, 0.0)
        assert TensorStatistics.of(torch.eye(3).to_sparse_csr()).mean == 1.0

    def test_meta_holds_nothing(self):
        assert dense(torch.ones(3, device="meta")) is None
        assert TensorStatistics.of(torch.ones(3, device="meta")).norm == 0.0

    def test_eight_bit_floats(self):
        seen = TensorStatistics.of(torch.tensor([1.0, -448.0, 0.0]).to(torch.float8_e4m3fn))
        assert (seen.max_abs, seen.num_nonfinite) == (448.0, 0)

    def test_needs_no_grad_and_makes_none(self):
        x = torch.ones(3, requires_grad=True)
        part = moments(x * 2)
        assert part.sums is not None
        assert not any(scalar.requires_grad for scalar in part.sums)

    def test_under_autocast_and_inference(self):
        x = torch.full((9,), 1e20)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            part = moments(x)
        assert summarize([[part]])[0].norm == pytest.approx(3e20)

    def test_to_dict_names_every_statistic(self):
        assert list(TensorStatistics.of(torch.ones(2)).to_dict()) == [
            "norm",
            "mean",
            "std",
            "max_abs",
            "fraction_zero",
            "num_nonfinite",
        ]
