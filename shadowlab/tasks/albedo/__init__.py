"""Albedo from a beauty image: the colour of surfaces, without light, shadow and gloss (Ke et al., Marigold, 2024)."""

from shadowlab.tasks.albedo.ensemble import Reduction, ensembled
from shadowlab.tasks.albedo.generate import AlbedoGenerator, check_options
from shadowlab.tasks.albedo.samples import AlbedoBatch, AlbedoSample, collate
from shadowlab.tasks.colour import SPACES, ColourSpace, converted, to_linear, to_srgb

__all__ = [
    "SPACES",
    "AlbedoBatch",
    "AlbedoGenerator",
    "AlbedoSample",
    "ColourSpace",
    "Reduction",
    "check_options",
    "collate",
    "converted",
    "ensembled",
    "to_linear",
    "to_srgb",
]
