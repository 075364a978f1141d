"""Exact pairs of all three edits: scenes rendered with Mitsuba 3 with and without their object, and photographs and
renders under known gains.

Objects, meshes, surfaces and the folder's upkeep are those of the other tasks' renders. Mitsuba and trimesh are
optional (`pip install mitsuba trimesh`) and are imported only while rendering.
"""

from shadowlab.tasks.editing.render.dataset import render_edits

__all__ = ["render_edits"]
