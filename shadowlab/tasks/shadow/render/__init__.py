"""Training samples rendered with Mitsuba 3: procedural objects or meshes, their masks, and their shadows on the ground.

`dataset.render_dataset` is the entry. Mitsuba and trimesh are optional (`pip install mitsuba trimesh`) and are
imported only while rendering.
"""
