"""CIEDE2000 on the pairs that were published to test it, angles of light, and L*a*b* of colours that are known."""

import math

import pytest
import torch

from shadowlab.tasks.colour import to_srgb
from shadowlab.tasks.editing import angular_error, ciede2000, lab_of
from shadowlab.tasks.editing.colour_difference import mean_delta_e

# Sharma, Wu and Dalal, 2005, table 1: L*, a*, b* of both, and their difference.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_all_published_pairs_and_both_ways() -> None:
    rows = [[float(word) for word in line.split()] for line in SHARMA.strip().split("\n")]
    table = torch.tensor(rows, dtype=torch.float64)
    assert len(table) == 34
    for one, other in ((table[:, :3], table[:, 3:6]), (table[:, 3:6], table[:, :3])):
        assert float((ciede2000(one, other) - table[:, 6]).abs().max()) < 6e-5
    assert float(ciede2000(table[:, :3], table[:, :3]).max()) == 0


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_lab_of_colours_that_are_known(colour: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = lab_of(torch.tensor(colour).view(3, 1, 1).float()).flatten()
    assert found.tolist() == pytest.approx(lab, abs=0.05)


def test_the_angle_of_light_is_blind_to_brightness_and_to_what_does_not_count() -> None:
    light = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    counts = torch.ones(1, 1, 4, 4)
    assert float(angular_error(to_srgb(light * 0.5), to_srgb(light), counts)) == pytest.approx(0, abs=1e-5)
    other = torch.tensor([0.1, 0.25, 0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    wanted = math.degrees(math.acos((0.05 + 0.0625 + 0.05) / (0.25 + 0.0625 + 0.01)))
    assert float(angular_error(to_srgb(other), to_srgb(light), counts)) == pytest.approx(wanted, abs=1e-4)
    assert float(angular_error(light * 0, to_srgb(light), counts)) == pytest.approx(90)
    half = torch.cat([to_srgb(other)[..., :2], to_srgb(light)[..., 2:]], dim=-1)
    left = torch.cat([counts[..., :2], 0 * counts[..., 2:]], dim=-1)
    assert float(angular_error(half, to_srgb(light), left)) == pytest.approx(wanted, abs=1e-4)
    assert float(angular_error(half, to_srgb(light), counts)) == pytest.approx(wanted / 2, abs=1e-4)
    assert float(angular_error(to_srgb(light), light * 0, counts)) == 0  # black has no hue


def test_delta_e_of_a_picture_is_the_mean_of_what_counts() -> None:
    p, g = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.5)
    p[..., :2] = 0.2
    counts = torch.ones(1, 1, 4, 4)
    whole = float(mean_delta_e(p, g, counts))
    counts[..., 2:] = 0
    assert float(mean_delta_e(p, g, counts)) == pytest.approx(2 * whole) and whole > 10
