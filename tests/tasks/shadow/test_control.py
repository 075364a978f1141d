"""What obeys its light scores perfectly, what does not scores badly, and black cannot be measured."""

import numpy as np
import pytest

from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.control import CONTROL_LIGHTS, Control, measure_control
from shadowlab.tasks.shadow.light import Light
from shadowlab.tasks.shadow.view import default_view

VIEW = default_view()
ROWS, COLUMNS = np.mgrid[:96, :96] + 0.5
MASK = (np.abs(COLUMNS - 48) < 9) & (np.abs(ROWS - 42) < 18)


def _inflated(light: Light) -> np.ndarray:
    return inflated_silhouette(MASK, *light, VIEW)


@pytest.fixture(scope="module")
def inflated() -> dict[Light, np.ndarray]:
    return {light: _inflated(light) for light in CONTROL_LIGHTS}


def test_what_obeys_scores_perfectly(inflated: dict[Light, np.ndarray]) -> None:
    asked: list[Light] = []

    def draw(light: Light) -> np.ndarray:
        asked.append(light)
        return inflated[light]

    control = measure_control(draw, MASK, VIEW)
    assert asked == list(CONTROL_LIGHTS)
    assert control.direction_error is not None and control.direction_error < 3
    assert control.turning_error is not None and control.turning_error < 2
    assert control.length_monotone == control.length_rank == 1
    assert control.penumbra_monotone == control.penumbra_rank == 1
    assert control.change_on_turn is not None and control.change_on_turn > 0.5
    assert control.not_measured == {}


def test_light_taken_wrongly_shows_in_its_own_measure(inflated: dict[Light, np.ndarray]) -> None:
    def measured(change) -> Control:  # type: ignore[no-untyped-def]
        return measure_control(lambda light: _inflated(change(*light)), MASK, VIEW)

    opposite = measured(lambda theta, phi, size: (theta, (phi + 180) % 360, size))
    assert opposite.direction_error is not None and opposite.direction_error > 170
    assert opposite.turning_error is not None and opposite.turning_error > 170
    fixed = measured(lambda theta, phi, size: (theta, 0.0, size))
    assert fixed.direction_error == pytest.approx(90, abs=3) and fixed.change_on_turn == 0
    assert fixed.turning_error is None and "none that moves" in fixed.not_measured["turning_error"]
    short = measured(lambda theta, phi, size: (45 - theta, phi, size))
    # Not 0 and -1: theta 0 and 10 follow each other there, where the object's own footprint is most of the shadow.
    assert short.length_monotone is not None and short.length_monotone <= 0.25
    assert short.length_rank is not None and short.length_rank <= -0.9
    hard = measured(lambda theta, phi, size: (theta, phi, 2.0))
    assert hard.penumbra_monotone == 0 and hard.penumbra_rank == 0


@pytest.mark.parametrize("haze", [0.0, 0.03])
def test_black_and_haze_cannot_be_measured(haze: float) -> None:
    control = measure_control(lambda light: np.full(MASK.shape, haze), MASK, VIEW)
    for name, reason in control.not_measured.items():
        assert getattr(control, name) is None and reason.startswith("no shadow")
    assert len(control.not_measured) == 7


def test_haze_around_a_shadow_changes_little(inflated: dict[Light, np.ndarray]) -> None:
    clear = measure_control(inflated.__getitem__, MASK, VIEW)
    hazy = measure_control(lambda light: np.maximum(inflated[light], 0.04), MASK, VIEW)
    assert hazy.direction_error == pytest.approx(clear.direction_error, abs=1.5)
    assert hazy.length_rank == clear.length_rank and hazy.penumbra_rank == clear.penumbra_rank


def test_maps_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="the mask"):
        measure_control(lambda light: np.zeros((8, 8)), MASK, VIEW)
    with pytest.raises(ValueError, match="not finite"):
        measure_control(lambda light: np.full(MASK.shape, np.nan), MASK, VIEW)
    assert measure_control(lambda light: np.ones((8, 8)), np.zeros((8, 8)), VIEW).direction_error is None
