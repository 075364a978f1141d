"""Closed forms against float64, for every type and for what usually breaks them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics import TensorStatistics
from diagnostics.statistics.tensor import Samples
from diagnostics.tensors import dense

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def merged(parts: list[Tensor]) -> TensorStatistics:
    samples = Samples()
    return samples.summarize([[samples.add(part) for part in parts]])[0]


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
    assert seen.std == pytest.approx(expected["std"], rel=close, abs=abs(seen.mean) * close)
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
    seen = merged(parts)
    expected = reference(whole)
    assert seen.max_abs == expected["max_abs"]
    if math.isfinite(expected["norm"]):
        assert seen.norm == pytest.approx(expected["norm"], rel=1e-5, abs=0)
    assert seen.mean == pytest.approx(expected["mean"], rel=1e-5, abs=1e-5 * expected["max_abs"])
    assert seen.num_nonfinite == 0


def test_merge_of_good_and_bad():
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([math.inf, 0.0, -1.0])
    seen = merged([good, bad, torch.zeros(0)])
    assert (seen.num_nonfinite, seen.norm, seen.mean) == (1, math.inf, math.inf)
    both = merged([bad, -bad])
    assert math.isnan(both.mean) and both.max_abs == math.inf and both.num_nonfinite == 2
    sick = merged([good, torch.tensor([math.nan])])  # nan after a number, and before
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
    """Deviations are taken from the mean: nothing cancels but the digits that the type itself has lost."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16_000, generator=generator, dtype=torch.float64)
    for ratio in (1.0, 1e-2, 1e-4, 1e-6):
        x = (1.0 + ratio * noise).float()
        assert TensorStatistics.of(x).std == pytest.approx(float(x.double().std(correction=0)), rel=1e-2)


SIZES = [16_385, 65_536, 92_160, 524_288, 1_000_003]


@st.composite
def large(draw) -> Tensor:
    """Of random layout, type and distribution, all of kurtosis below 6; some with zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(draw(st.sampled_from(SIZES)), generator=generator)
    x = x.relu() if draw(st.booleans()) else x + draw(st.sampled_from([0.0, 0.5, -3.0]))
    x = (x * draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e30]))).to(draw(st.sampled_from(DTYPES)))
    if x.numel() % 64 == 0 and draw(st.booleans()):
        x = x.view(4, -1, 4, 4).to(memory_format=torch.channels_last)
    return x.view(-1, 2).T if x.numel() % 2 == 0 and x.ndim == 1 and draw(st.booleans()) else x


@settings(quick, max_examples=25)
@given(large())
def test_estimates_of_large_tensors(tensor: Tensor):
    """Exact: max_abs, whether finite. Estimated: the rest, within 5 of the documented standard errors."""
    seen, x = TensorStatistics.of(tensor), tensor.double()
    assert seen.max_abs == float(x.abs().max()) or not math.isfinite(seen.max_abs)
    if not x.isfinite().all():  # float16 does not hold 1e30
        assert seen.num_nonfinite > 0
        return
    std = float(x.std(correction=0))
    assert seen.num_nonfinite == 0
    assert seen.norm == pytest.approx(float(torch.linalg.vector_norm(x)), rel=0.1)
    assert seen.mean == pytest.approx(float(x.mean()), abs=std * 0.08)
    assert seen.std == pytest.approx(std, rel=0.1)
    assert seen.fraction_zero == pytest.approx(float((x == 0).double().mean()), abs=0.04)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_element_anywhere_is_noticed(dtype: torch.dtype, value: float):
    generator = torch.Generator().manual_seed(0)
    for size in (16_385, 65_536):
        x = torch.ones(size, dtype=dtype)
        for index in [0, 1, size - 2, size - 1, *torch.randint(size, (60,), generator=generator).tolist()]:
            x[index] = value
            seen = TensorStatistics.of(x)
            # scaled up where the sample holds it
            assert 1 <= seen.num_nonfinite <= 6 * size // 16_384
            assert seen.max_abs == abs(value) or (math.isnan(value) and math.isnan(seen.max_abs))
            x[index] = 1


def test_bad_elements_of_a_large_tensor_are_scaled_up():
    x = torch.ones(100, 1000)
    x[:, ::4] = math.nan
    assert TensorStatistics.of(x).num_nonfinite == pytest.approx(25_000, rel=0.1)
    assert TensorStatistics.of(torch.full((100_000,), math.inf)).num_nonfinite == 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_outlier_of_a_large_tensor(dtype: torch.dtype):
    """The sample misses it, yet no number contradicts another."""
    x = torch.ones(65_536, dtype=dtype)
    for outlier in (1e6, -torch.finfo(dtype).max):
        x[12_345] = outlier
        seen = TensorStatistics.of(x)
        assert seen.max_abs == seen.norm == abs(outlier)
        assert seen.num_nonfinite == 0
        assert math.isfinite(seen.mean) and math.isfinite(seen.std)


def test_no_row_or_kernel_tap_is_favoured():
    """A column of zeros in any dimension is seen in its proportion."""
    for shape in ((512, 3, 3, 64), (64, 32, 32), (4, 4096, 16), (1000, 100)):
        for dim, size in enumerate(shape):
            x = torch.ones(shape)
            x.select(dim, size // 2).zero_()
            assert TensorStatistics.of(x).fraction_zero == pytest.approx(1 / size, abs=0.02)


def test_merge_of_whole_and_sampled():
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(size, generator=generator) + shift for size, shift in ((100, 50.0), (90_000, 0.0), (9_000, 1))]
    whole = torch.cat(parts).double()
    seen = merged(parts)
    assert seen.max_abs == float(whole.abs().max())
    assert seen.norm == pytest.approx(float(whole.norm()), rel=0.05)
    assert seen.mean == pytest.approx(float(whole.mean()), abs=0.08)
    assert seen.std == pytest.approx(float(whole.std(correction=0)), rel=0.05)


def test_gradually_larger_tensors_change_no_kind_of_answer():
    """Both sides of the limit between measured and sampled."""
    for size in (16_383, 16_384, 16_385):
        assert TensorStatistics.of(torch.full((size,), 2.0)) == TensorStatistics(
            pytest.approx(2 * math.sqrt(size), rel=1e-6), 2.0, 0.0, 2.0, 0.0, 0, pytest.approx(127.0)
        )


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
            if not func.is_view and "empty" not in func.name():
                results.append(result)
            return result

    samples, small, large = Samples(), torch.ones(2, 3, 4, dtype=dtype), torch.ones(100_000, dtype=dtype)
    with Operators():
        samples.add(small)
        samples.add(large)
    assert len(results) == 3  # a copy; extremes and a copy
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
        samples = Samples()
        samples.add(x * 2)
        (table,) = samples._tables
        assert not table.values.requires_grad

    def test_under_autocast_and_inference(self):
        x = torch.full((9,), 1e20)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            samples = Samples()
            numbers = [samples.add(x), samples.add(torch.full((20_000,), 1e20))]
        numbers.append(samples.add(x))  # and in the same table outside
        assert [one.norm for one in samples.summarize([[n] for n in numbers])] == pytest.approx(
            [3e20, 1e20 * 20_000**0.5, 3e20]
        )

    def test_to_dict_names_every_statistic(self):
        assert list(TensorStatistics.of(torch.ones(2)).to_dict()) == [
            "norm",
            "mean",
            "std",
            "max_abs",
            "fraction_zero",
            "num_nonfinite",
            "headroom_bits",
        ]
