"""Training samples rendered with Mitsuba 3: procedural objects or meshes, their masks, and their shadows on the ground.

`dataset.render_dataset` is the entry. Mitsuba and trimesh are optional (`pip install mitsuba trimesh`) and are
imported only while rendering.
"""

from shadowlab.tasks.shadow.render.camera import light_axes
from shadowlab.tasks.shadow.render.dataset import DEFAULT_SAMPLES_PER_PIXEL, render_dataset
from shadowlab.tasks.shadow.render.gathering import Gathering, check_empty, gathered
from shadowlab.tasks.shadow.render.objects import random_generator
from shadowlab.tasks.shadow.render.scene import SceneObject, light_frame, mitsuba
from shadowlab.tasks.shadow.render.shapes import PLAIN_GREY, Part, linear_from_srgb
from shadowlab.tasks.shadow.render.sources import Source, check_arguments, object_sources

__all__ = [
    # the data set
    "DEFAULT_SAMPLES_PER_PIXEL",
    "render_dataset",
    # for renders of other tasks
    "PLAIN_GREY",
    "Gathering",
    "Part",
    "SceneObject",
    "Source",
    "check_arguments",
    "check_empty",
    "gathered",
    "light_axes",
    "light_frame",
    "linear_from_srgb",
    "mitsuba",
    "object_sources",
    "random_generator",
]
