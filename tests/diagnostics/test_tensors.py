"""Finite checks that leave their answer on the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diagnostics.tensors import (
    all_finite,
    any_bad,
    bad_flags,
    dense,
    magnitude,
    named_tensors,
    parts,
    strided,
    values_of,
)
from tests.diagnostics.watching.eight_bits import EightBit

NAN, INF = float("nan"), float("inf")


def test_all_finite_tests_elements_not_sums() -> None:
    good = torch.ones(3)
    assert all_finite([])
    assert all_finite([good, torch.zeros(0), torch.arange(3), good.new_empty(2, device="meta")])
    for value in (NAN, INF, -INF):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            bad = torch.ones(1000, dtype=dtype)
            bad[777] = value
            assert not all_finite([good, bad])
            assert any_bad([good, bad])
            assert not torch.isfinite(magnitude([good, bad]))
    for dtype in (torch.float16, torch.float32):
        assert all_finite([torch.full((100,), torch.finfo(dtype).max, dtype=dtype)])
    assert not all_finite([torch.sparse_coo_tensor([[0]], [NAN], (3,), check_invariants=True)])


def test_all_finite_takes_tensors_of_several_devices() -> None:
    """AdamW keeps its step counts on the CPU and its moments on the accelerator."""
    with FakeTensorMode():
        step, moment = torch.zeros(()), torch.zeros(3, device="cuda")
        assert all_finite([step, moment]).device.type == "cuda"


def test_magnitude_is_the_joint_norm_and_overflow_is_no_bad_value() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(5, 3), torch.randn(7, dtype=torch.float64), torch.randn(4).half()]
    expected = torch.cat([t.double().flatten() for t in tensors]).norm()
    torch.testing.assert_close(magnitude(tensors), expected, rtol=1e-3, atol=0)
    assert magnitude([]) == 0
    huge = torch.full((4,), 1e30)
    assert not torch.isfinite(magnitude([huge]))
    assert not any_bad([huge])


def test_values_are_those_that_this_process_holds() -> None:
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, NAN], (3,), check_invariants=True)
    found = values_of([None, torch.arange(3), torch.empty(0), torch.zeros(2, requires_grad=True), sparse])
    assert [tuple(values.shape) for values in found] == [(2,), (2,)]
    assert not any(values.requires_grad for values in found)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_bad_flags_see_one_element_of_any_type(dtype: torch.dtype, value: float) -> None:
    good = torch.full((7, 3), -2.0).to(dtype)
    bad = torch.full((7, 3), -2.0, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    bad[4, 1] = complex(1.0, value) if dtype.is_complex else value
    assert bad_flags([good, torch.arange(3), bad.to(dtype), good[:0]]) == [False, False, True, False]


def test_a_tensor_that_is_made_of_others_is_seen_through_them() -> None:
    """No operator takes it, and nobody asks one."""
    table = torch.linspace(-1, 1, 256)
    state = EightBit.zeros_like(torch.empty(3, 3), table)
    assert parts(state) == [state.codes, state.scales, state.table]
    assert strided(state) is None and dense(state) is None
    assert [tuple(values.shape) for values in values_of([state])] == [(3,), (256,)]
    assert all_finite([state]) and not any_bad(values_of([state]))
    state.scales[1] = NAN
    assert any_bad(values_of([state]))
    assert not torch.isfinite(magnitude(values_of([state])))


def test_tensors_are_named_wherever_they_lie() -> None:
    state = EightBit.zeros_like(torch.empty(2), torch.zeros(256))
    tree = {"step": 3, "moments": [torch.zeros(2), (torch.zeros(1, dtype=torch.uint8),)], "eight": state, "word": "a"}
    names = ["moments.0", "moments.1.0", "eight.codes", "eight.scales", "eight.table"]
    assert [name for name, _ in named_tensors("weight", tree)] == [f"weight.{name}" for name in names]


def test_a_norm_of_any_type_warns_of_nothing() -> None:
    mixed = [torch.tensor([3.0]).to(torch.float8_e4m3fn), torch.tensor([4j]), torch.tensor([12.0]).half()]
    assert magnitude(mixed) == 13


@pytest.mark.parametrize("place", [0, 700, 1399])
def test_one_bad_element_among_many_small_and_large_tensors_is_seen(place: int) -> None:
    """Small tensors are looked at together, by dtype."""
    dtypes = (torch.float32, torch.bfloat16, torch.complex64, torch.float8_e4m3fn)
    tensors = [torch.ones(3 if i % 100 else 20_000).to(dtypes[i % 4]) for i in range(1400)]
    assert not any_bad(tensors) and all_finite(tensors)
    tensors[place] = tensors[place].float().index_fill(0, torch.tensor([2]), NAN).to(tensors[place].dtype)
    assert any_bad(tensors) and not all_finite(tensors)
    assert bad_flags(tensors) == [i == place for i in range(1400)]
