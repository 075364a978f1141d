"""The light's embedding: periodic where the light is, ordered where the light is, strict at its limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import LIGHT_DISTANCE, SCALAR_DIM, embed_light, light_position

THETA, PHI, SIZE = range(3)
NAMES = ("theta", "phi", "size")
MIDDLE = (20.0, 100.0, 4.0)


def lights(column: int, values: list[float]) -> Tensor:
    rows = torch.tensor([MIDDLE] * len(values), dtype=torch.float64)
    rows[:, column] = torch.tensor(values, dtype=torch.float64)
    return rows


def distances(column: int, values: list[float]) -> list[float]:
    """Distance of each value's embedding from the first's."""
    embedded = embed_light(lights(column, values)).double()
    return (embedded - embedded[0]).norm(dim=1).tolist()


def test_a_full_turn_is_no_turn_bit_for_bit() -> None:
    start, end = embed_light(lights(PHI, [0.0, 360.0]))
    assert torch.equal(start, end)


@given(st.floats(0, 360), st.floats(1, 179), st.floats(0.5, 30))
def test_azimuths_grow_apart_up_to_half_a_turn(start: float, turn: float, more: float) -> None:
    more = min(more, 180.0 - turn)
    near, far = (start + turn) % 360, (start + turn + more) % 360
    _, to_near, to_far = distances(PHI, [start, near, far])
    assert to_far > to_near or more < 0.5


@given(st.floats(0, 359))
def test_near_azimuths_are_near(phi: float) -> None:
    _, one_degree, half_turn = distances(PHI, [phi, phi + 1.0, (phi + 180.0) % 360])
    assert one_degree < half_turn / 10


def test_the_turn_is_the_same_from_everywhere() -> None:
    """20 degrees are 20 degrees, across the seam too; the paper's own embedding breaks here."""
    steps = [distances(PHI, [phi, (phi + 20.0) % 360])[1] for phi in range(0, 360, 20)]
    assert max(steps) - min(steps) < 1e-5


@pytest.mark.parametrize(("column", "low", "high"), [(THETA, 0, 45), (SIZE, 2, 8)])
def test_polar_angle_and_size_are_ordered(column: int, low: float, high: float) -> None:
    values = torch.linspace(low, high, 40).tolist()
    from_start = distances(column, values)
    assert from_start == sorted(from_start)
    assert len(set(from_start)) == len(values)


def test_each_scalar_has_its_own_third() -> None:
    base = embed_light(torch.tensor([MIDDLE]))[0]
    for column, value in ((THETA, 30.0), (PHI, 10.0), (SIZE, 7.0)):
        moved = (embed_light(lights(column, [value]))[0] != base).nonzero().flatten()
        assert moved.min() >= column * SCALAR_DIM
        assert moved.max() < (column + 1) * SCALAR_DIM


def test_each_third_has_the_norm_of_a_timestep_embedding() -> None:
    thirds = embed_light(lights(PHI, [0.0, 33.0, 359.0])).view(3, 3, SCALAR_DIM)
    torch.testing.assert_close(thirds.norm(dim=2), torch.full((3, 3), math.sqrt(SCALAR_DIM / 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_float32_from_any_dtype(dtype: torch.dtype) -> None:
    light = torch.tensor([[45, 360, 8], [0, 0, 2]]).to(dtype)
    assert embed_light(light).dtype == torch.float32
    assert torch.equal(embed_light(light), embed_light(light.double()))


@pytest.mark.parametrize("column", [THETA, PHI, SIZE])
@pytest.mark.parametrize("value", [-0.001, 360.001, math.nan, math.inf, -math.inf])
def test_a_bad_value_names_its_row_and_the_limits(column: int, value: float) -> None:
    light = lights(column, [MIDDLE[column]] * 3)
    light[2, column] = value
    with pytest.raises(UserError, match=rf"row 2: light {NAMES[column]} = \S+ is outside \[\d+, \d+\]"):
        embed_light(light)


def test_position_is_the_benchmarks() -> None:
    """`light_location` of the benchmark's example: theta 30, phi 0, r 8."""
    assert light_position(30, 0) == pytest.approx((4.0, 0.0, 6.928203105926514))
    assert light_position(0, 123) == pytest.approx((0.0, 0.0, LIGHT_DISTANCE))
    assert light_position(90, 90) == pytest.approx((0.0, LIGHT_DISTANCE, 0.0))
