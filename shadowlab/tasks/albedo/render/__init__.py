"""Pairs rendered with Mitsuba 3: the beauty of a scene, and its albedo as the renderer knows it.

Objects, meshes and the folder's upkeep are those of the shadow task. Mitsuba and trimesh are optional (`pip install
mitsuba trimesh`) and are imported only while rendering.
"""

from shadowlab.tasks.albedo.render.dataset import render_pairs
from shadowlab.tasks.albedo.render.lighting import unit_irradiance
from shadowlab.tasks.albedo.render.patterns import Picture, dressed, ground_picture
from shadowlab.tasks.albedo.render.photographs import Photograph, find_photographs
from shadowlab.tasks.albedo.render.scene import BLOCK_SIZE, encoded, ground_surface, sensor

__all__ = [
    # the data set
    "render_pairs",
    # for renders of other tasks
    "BLOCK_SIZE",
    "Photograph",
    "Picture",
    "dressed",
    "encoded",
    "find_photographs",
    "ground_picture",
    "ground_surface",
    "sensor",
    "unit_irradiance",
]
