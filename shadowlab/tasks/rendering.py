"""Data sets that are rendered, whatever their task: one arm a task that has a renderer."""

from pathlib import Path
from typing import Any

from shadowlab.console import Reporter
from shadowlab.distributed import Processes
from shadowlab.errors import UserError

RENDERED = ("shadow", "albedo", "insertion", "editing")


def render_samples(
    task: str,
    out: Path,
    processes: Processes,
    reporter: Reporter,
    *,
    num_objects: int | None,
    lights_per_object: int,
    image_size: int,
    samples_per_pixel: int,
    seed: int,
    meshes: Path | None = None,
    textures: Path | None = None,
    renders: Path | None = None,
) -> int:
    """Render a data set of `task` into the new folder `out`; arguments as the task's own renderer has them.

    Returns:
        The number of samples written.

    Raises:
        UserError: the task has no renderer, or it refuses an argument.
        MissingDependencyError: Mitsuba is not installed.
    """
    if renders is not None and task != "insertion":
        raise UserError("--renders: of --task insertion alone; leave it out")
    asked: dict[str, Any] = {"num_objects": num_objects, "image_size": image_size, "seed": seed}
    rays: dict[str, Any] = {
        "lights_per_object": lights_per_object,
        "samples_per_pixel": samples_per_pixel,
        "meshes": meshes,
    }
    match task:
        case "shadow":
            from shadowlab.tasks.shadow import render_dataset

            if textures is not None:
                raise UserError("--textures: a shadow data set shows objects in their own colours; leave it out")
            return render_dataset(out, processes, reporter, **asked, **rays)
        case "albedo":
            from shadowlab.tasks.albedo.render import render_pairs

            return render_pairs(out, processes, reporter, **asked, **rays, textures=textures)
        case "editing":
            from shadowlab.tasks.editing.render import render_edits

            return render_edits(out, processes, reporter, **asked, **rays, textures=textures)
        case "insertion":
            from shadowlab.tasks.insertion.composing import render_insertions

            if meshes is not None or textures is not None:
                named = "--meshes" if meshes is not None else "--textures"
                raise UserError(f"{named}: insertions are composed of renders of shadows; give --renders DIR")
            return render_insertions(out, processes, reporter, **asked, per_object=lights_per_object, renders=renders)
    raise UserError(f"--task {task}: no renderer; there is one for {', '.join(RENDERED)}")
