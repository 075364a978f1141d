"""Which lights an object is rendered under: spread over the ranges, a pure function of (seed, object, light)."""

from shadowlab.tasks.shadow.light import PHI_RANGE, SIZE_RANGE, THETA_RANGE
from shadowlab.tasks.shadow.render.objects import random_generator

# Roberts' R3 sequence: powers of 1/g, where g = 1.2207... is the real root of x^4 = x + 1. Any run of consecutive
# members fills the unit cube evenly. (M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018.)
_ROOT = 1.2207440846057596
_STEPS = (_ROOT**-3, _ROOT**-2, _ROOT**-1)  # theta, phi, size: phi goes by 0.67 of a turn


def choose_light(seed: int, object_index: int, light_index: int) -> tuple[float, float, float]:
    """(theta, phi, size) in degrees and scene units, rounded to 0.1 degree and 0.01 unit; see `light.py`.

    Each object starts at a random place and goes on along the sequence, so that its lights differ from one another
    whatever their number, and the lights of all objects together cover the ranges.
    """
    starts = random_generator(seed, "render/lights", object_index).uniform(size=3)
    fractions = [float((start + light_index * step) % 1) for start, step in zip(starts, _STEPS, strict=True)]
    theta, phi, size = (
        low + fraction * (high - low)
        for fraction, (low, high) in zip(fractions, (THETA_RANGE, PHI_RANGE, SIZE_RANGE), strict=True)
    )
    return round(theta, 1), round(phi, 1) % PHI_RANGE[1], round(size, 2)
