"""Procedural objects: a pure function of (seed, object index).

Recipes live in `recipes_simple`, `recipes_built` and `recipes_things`. Every run of objects as long as the list of
recipes has each recipe once, in a shuffled order, so that even a small set is varied.
"""

import numpy as np

from shadowlab.seeding import derive_seed
from shadowlab.tasks.shadow.render.placement import rest_on_ground
from shadowlab.tasks.shadow.render.recipes_built import BUILT_RECIPES
from shadowlab.tasks.shadow.render.recipes_simple import SIMPLE_RECIPES
from shadowlab.tasks.shadow.render.recipes_things import THING_RECIPES
from shadowlab.tasks.shadow.render.shapes import Part, rotation

RECIPES = (*SIMPLE_RECIPES, *BUILT_RECIPES, *THING_RECIPES)


def random_generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose, independent of all others; see `shadowlab.seeding`."""
    return np.random.default_rng(derive_seed(seed, purpose, *counters))


def placed_object(seed: int, index: int) -> list[Part]:
    """`procedural_object`, scaled and resting on the ground."""
    return rest_on_ground(procedural_object(seed, index))


def procedural_object(seed: int, index: int) -> list[Part]:
    """Object number `index` of the set with `seed`, in its own units, z up, turned about z at random."""
    turn, position = divmod(index, len(RECIPES))
    order = random_generator(seed, "render/recipe-order", turn).permutation(len(RECIPES))
    rng = random_generator(seed, "render/object", index)
    parts = RECIPES[order[position]](rng)
    yaw = rotation("z", rng.uniform(0, 360))
    return [Part(part.vertices @ yaw.T, part.faces, part.color) for part in parts]
