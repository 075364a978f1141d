"""Pairs rendered with Mitsuba 3: the beauty of a scene, and its albedo as the renderer knows it.

Objects, meshes and the folder's upkeep are those of the shadow task. Mitsuba and trimesh are optional (`pip install
mitsuba trimesh`) and are imported only while rendering.
"""

from shadowlab.tasks.albedo.render.dataset import render_pairs

__all__ = ["render_pairs"]
