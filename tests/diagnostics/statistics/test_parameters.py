"""Gradient norms and update ratios against closed forms; norms of extreme gradients; sharded gradients."""

import math
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from diagnostics import ParameterStatistics
from diagnostics.statistics.parameters import MAX_SAMPLED_ELEMENTS, gradient_norms, sampled, total_norm

quick = settings(max_examples=60, deadline=None, derandomize=True)


def measured(model: nn.Module, optimizer: torch.optim.Optimizer):
    statistics = ParameterStatistics(model)
    statistics.before_step()
    optimizer.step()
    statistics.after_step()
    return statistics.collect()


def with_gradient(*shape: int, dtype: torch.dtype = torch.float32, value: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(shape).to(dtype))
    model.w.grad = torch.full_like(model.w, value)
    return model


class TestUpdateRatio:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0,), (300, 300)])
    def test_plain_descent_is_rate_times_gradient_over_weight(self, shape: tuple[int, ...], dtype: torch.dtype):
        model = with_gradient(*shape, dtype=dtype, value=0.5)
        weight = model.w.detach().double().clone()
        record = measured(model, torch.optim.SGD(model.parameters(), lr=1e-2))["w"]
        assert record.gradient_norm == pytest.approx(0.5 * math.sqrt(weight.numel()))
        if weight.numel() == 0:
            assert record.update_ratio is None
        else:
            expected = 1e-2 * 0.5 * math.sqrt(weight.numel()) / float(weight.norm())
            assert record.update_ratio == pytest.approx(
                expected, rel=2e-2 if weight.numel() > MAX_SAMPLED_ELEMENTS else 1e-4
            )

    def test_float64_keeps_small_changes(self):
        model = with_gradient(5, dtype=torch.float64)
        record = measured(model, torch.optim.SGD(model.parameters(), lr=1e-12))["w"]
        assert record.update_ratio == pytest.approx(1e-12 * math.sqrt(5) / float(model.w.detach().norm()), rel=1e-3)

    def test_zero_weight_has_no_ratio(self):
        model = with_gradient(4)
        nn.init.zeros_(model.w)
        record = measured(model, torch.optim.SGD(model.parameters(), lr=0.1))["w"]
        assert (record.gradient_norm, record.update_ratio) == (2.0, None)

    def test_zero_weight_without_gradient_has_no_ratio_either(self):
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        assert measured(model, torch.optim.SGD(model.parameters(), lr=0.1))["weight"].update_ratio is None

    def test_bad_weight_shows(self):
        """A weight that became NaN is not a zero weight."""
        model = with_gradient(4, value=math.nan)
        record = measured(model, torch.optim.SGD(model.parameters(), lr=0.1))["w"]
        assert math.isnan(record.update_ratio) and math.isnan(record.gradient_norm)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_update_lost_to_rounding_is_zero(self, dtype: torch.dtype):
        model = with_gradient(8, dtype=dtype)
        nn.init.ones_(model.w)
        assert measured(model, torch.optim.SGD(model.parameters(), lr=1e-5))["w"].update_ratio == 0.0
        assert measured(model, torch.optim.SGD(model.parameters(), lr=0.5))["w"].update_ratio == pytest.approx(0.5)

    def test_extreme_weights(self):
        model = with_gradient(4, value=1e30)
        with torch.no_grad():
            model.w.fill_(1e30)
        assert measured(model, torch.optim.SGD(model.parameters(), lr=0.1))["w"].update_ratio == pytest.approx(0.1)


class TestWhatIsMeasured:
    def test_frozen_and_unreached_parameters(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        model[1](torch.ones(1, 2)).sum().backward()
        records = measured(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert list(records) == ["1.weight", "1.bias", "2.weight", "2.bias"]
        assert records["2.weight"].gradient_norm is None
        assert records["2.weight"].update_ratio == 0.0

    def test_unfrozen_later_is_measured(self):
        model = nn.Linear(2, 2).requires_grad_(False)
        statistics = ParameterStatistics(model)
        statistics.before_step()
        assert statistics.collect() == {}
        model.requires_grad_(True)
        statistics.before_step()
        assert set(statistics.collect()) == {"weight", "bias"}

    def test_shared_parameter_once(self):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        model(torch.ones(1, 2)).sum().backward()
        assert list(measured(model, torch.optim.SGD(model.parameters(), lr=0.1))) == ["0.weight"]

    def test_skipped_step_has_norms_and_no_ratio(self):
        model = with_gradient(4)
        statistics = ParameterStatistics(model)
        statistics.before_step()
        assert statistics.collect()["w"].update_ratio is None
        assert statistics.collect() == {}

    def test_after_without_before(self):
        statistics = ParameterStatistics(with_gradient(4))
        with pytest.raises(RuntimeError, match="after_step without before_step"):
            statistics.after_step()
        statistics.before_step()
        statistics.after_step()
        with pytest.raises(RuntimeError, match="after_step without before_step"):
            statistics.after_step()

    def test_model_without_parameters(self):
        statistics = ParameterStatistics(nn.ReLU())
        statistics.before_step()
        statistics.after_step()
        assert statistics.collect() == {}

    def test_mixed_types(self):
        model = nn.ModuleDict({"a": with_gradient(3), "b": with_gradient(3, dtype=torch.float16)})
        model["c"] = with_gradient(3, dtype=torch.float64)
        records = measured(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert [record.gradient_norm for record in records.values()] == pytest.approx([math.sqrt(3)] * 3)


class TestSampling:
    @pytest.mark.parametrize(
        "shape", [(4096, 4096), (1280, 1280, 3, 3), (640, 960, 3, 3), (65_537,), (3, 70_001), (2**17, 9)]
    )
    def test_every_row_column_and_tap_is_read_alike(self, shape: tuple[int, ...]):
        """For each dimension, each index is sampled equally often, to a few in a hundred."""
        x = torch.empty(shape, device="meta")
        count = x.numel()
        small = torch.empty(1).expand(count)  # takes no memory; its stride tells how sampled would step
        step = math.ceil(count / MAX_SAMPLED_ELEMENTS)
        while math.gcd(step, count) > 1:
            step += 1
        places = torch.arange(0, count, step)
        assert len(sampled(small.clone() if count < 10**6 else torch.zeros(count, dtype=torch.uint8))) == len(places)
        assert len(places) <= MAX_SAMPLED_ELEMENTS
        for dim, size in enumerate(shape):
            index = places // math.prod(shape[dim + 1 :]) % size
            seen = torch.bincount(index, minlength=size)
            expected = len(places) / size
            if expected >= 16:
                assert seen.min() >= 0.85 * expected - 1 and seen.max() <= 1.15 * expected + 1

    def test_one_tap_that_moves_alone_is_seen(self):
        """A stride of 9k would read only one tap of every 3 x 3 kernel."""
        x = torch.zeros(360, 360, 3, 3)
        for tap in range(9):
            x.zero_().view(360, 360, 9)[..., tap] = 1
            assert float(sampled(x).mean()) == pytest.approx(1 / 9, rel=0.02)

    def test_view_of_dense_memory(self):
        x = torch.randn(64, 64, 8, 8).contiguous(memory_format=torch.channels_last)
        assert sampled(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert torch.equal(sampled(x[:, ::2, :1, 0].contiguous()).sort().values, x[:, ::2, :1, 0].flatten().sort()[0])


class TestNorms:
    @quick
    @given(
        st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=5), min_size=1, max_size=4),
        st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    )
    def test_same_as_torch(self, values: list[list[float]], dtype: torch.dtype):
        gradients = [torch.tensor(row).to(dtype) for row in values]
        named = {}
        for index, gradient in enumerate(gradients):
            named[str(index)] = nn.Parameter(torch.zeros_like(gradient))
            named[str(index)].grad = gradient
        norms = gradient_norms(named)
        expected = torch.nn.utils.get_total_norm([gradient.double() for gradient in gradients])
        assert float(total_norm(norms.values())) == pytest.approx(float(expected), rel=1e-6)
        for gradient, norm in zip(gradients, norms.values(), strict=True):
            assert float(norm) == pytest.approx(float(gradient.double().norm()), rel=1e-6)

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [
            (torch.float32, 1e20),
            (torch.float32, 3e38),
            (torch.float32, 1e-40),
            (torch.bfloat16, 3e38),
            (torch.float16, 65504.0),
            (torch.float64, 1e200),
            (torch.float64, 1e-200),
        ],
    )
    def test_finite_gradients_have_a_finite_norm(self, dtype: torch.dtype, value: float):
        """float32 squares overflow above 1.8e19: not a reason to stop a run."""
        parameters = dict(with_gradient(9, dtype=dtype, value=value).named_parameters())
        exact = float(parameters["w"].grad.double()[0])
        norm = gradient_norms(parameters)["w"]
        assert float(norm) == pytest.approx(3 * exact, rel=1e-6)
        assert float(total_norm([norm] * 4)) == pytest.approx(6 * exact, rel=1e-6)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_bad_gradients_have_a_bad_norm(self, dtype: torch.dtype, value: float):
        model = with_gradient(9, dtype=dtype)
        model.w.grad[4] = value
        norms = gradient_norms(dict(model.named_parameters()))
        expected = abs(value) if value == value else value
        for norm in (norms["w"], total_norm([torch.tensor(1.0), norms["w"]])):
            assert float(norm) == pytest.approx(expected, nan_ok=True)

    def test_sparse_gradient_is_summed_first(self):
        embedding = nn.Embedding(5, 2, sparse=True)
        embedding(torch.tensor([1, 1, 3])).sum().backward()
        norm = gradient_norms(dict(embedding.named_parameters()))["weight"]
        assert float(norm) == pytest.approx(math.sqrt(4 + 4 + 1 + 1))

    def test_complex_gradient(self):
        weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        weight.grad = torch.tensor([3 + 4j, 0j])
        assert float(gradient_norms({"w": weight})["w"]) == 5.0

    def test_none_and_nothing(self):
        assert gradient_norms({"w": nn.Parameter(torch.ones(2))}) == {}
        assert float(total_norm([])) == 0.0


SHARDED = """
import sys, torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from diagnostics import ParameterStatistics
from diagnostics.statistics import gradient_norms, total_norm

rank, path = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(path, 2), rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
whole = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
whole.load_state_dict(model.state_dict())
x = torch.randn(4, 3)
whole(x).square().mean().backward()
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
fully_shard(model, mesh=mesh)
model(x).square().mean().backward()
norms = gradient_norms(dict(model.named_parameters()))
for name, norm in gradient_norms(dict(whole.named_parameters())).items():
    torch.testing.assert_close(norms[name], norm)
expected = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters()])
torch.testing.assert_close(total_norm(norms.values()).float(), expected)
statistics = ParameterStatistics(model)
statistics.before_step()
torch.optim.SGD(model.parameters(), lr=0.1).step()
statistics.after_step()
assert len(statistics.collect()) == 4
torch.distributed.destroy_process_group()
"""


def test_norm_of_sharded_gradients_is_that_of_the_whole(tmp_path):
    """FSDP2 on two processes; the norm of one shard would be too small by about the root of two."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    root = Path(__file__).parents[3]
    command = [sys.executable, str(script)]
    children = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors


def test_results_stay_on_the_device_of_the_gradient():
    norms = gradient_norms(dict(with_gradient(3).named_parameters()))
    assert isinstance(norms["w"], Tensor) and norms["w"].shape == () and norms["w"].dtype == torch.float64
