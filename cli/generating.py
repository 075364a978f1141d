"""What `shadowlab generate` does with its options: a shadow, an albedo, an insertion or an edit, by what is asked for.

Every function takes the command's options by their names.
"""

from types import SimpleNamespace
from typing import Any


def write(asked: SimpleNamespace) -> None:
    """Raise UserError where options of one task are given with those of another."""
    if asked.target is not None:
        _write_insertion(asked)
        return
    _refuse({"guidance": asked.guidance}, of="--target; add it")
    if asked.image is not None:
        _write_picture(asked)
    else:
        _write_shadows(asked)


def _write_insertion(asked: SimpleNamespace) -> None:
    from shadowlab.inference import InsertionRequest, write_insertion

    others = {"list": asked.list_file, "image": asked.image, "ensemble": _members(asked)}
    _refuse(_light(asked) | _backdrop(asked) | others, of="other tasks, and --target asks for an insertion")
    request = InsertionRequest(
        asked.target,
        asked.object_image,
        asked.mask,
        asked.out,
        asked.steps,
        asked.seed,
        1.0 if asked.guidance is None else asked.guidance,
        asked.resolution,
    )
    write_insertion(asked.place, request, **_how(asked))


def _write_picture(asked: SimpleNamespace) -> None:
    """The picture is edited, or its albedo is drawn, by what the model was trained for."""
    from shadowlab.inference import AlbedoRequest, EditingRequest, task_of, write_albedos, write_edits

    _refuse({"object": asked.object_image} | _light(asked) | _backdrop(asked) | {"list": asked.list_file})
    drawn = asked.steps, asked.seed, asked.resolution
    if task_of(asked.place) == "editing":
        _refuse({"ensemble": _members(asked), "uncertainty": asked.uncertainty}, of="albedos")
        write_edits(asked.place, EditingRequest(asked.image, asked.out, asked.mask, *drawn), **_how(asked))
        return
    _refuse({"mask": asked.mask})
    several = asked.uncertainty, asked.ensemble, asked.reduction
    write_albedos(asked.place, AlbedoRequest(asked.image, asked.out, *several, *drawn, asked.space), **_how(asked))


def _write_shadows(asked: SimpleNamespace) -> None:
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.inference import write_shadows
    from shadowlab.tasks.shadow import Style, parse_colour

    others = {"ensemble": _members(asked), "uncertainty": asked.uncertainty, "resolution": asked.resolution}
    _refuse(others, of="--image; add it")
    colour = parse_colour(asked.shadow_color, "--shadow-color")
    shown = asked.samples, asked.side_by_side, asked.sweep, asked.frames, asked.fit
    values = {"object": asked.object_image, "mask": asked.mask, **_light(asked), "steps": asked.steps}
    values |= {"seed": asked.seed, "background": asked.background, "intensity": asked.intensity, "out": asked.out}
    with workers(asked.device or "auto") as processes:
        reporter = Reporter(as_json=asked.as_json, active=processes.is_main)
        how = {"overwrite": asked.overwrite, "weights": asked.weights}
        style = Style(*shown, colour, asked.bits)
        write_shadows(asked.place, values, style, asked.list_file, processes, reporter, **how)


def _how(asked: SimpleNamespace) -> dict[str, Any]:
    """What every kind of picture of one process is written with."""
    from shadowlab.console import Reporter

    return {
        "reporter": Reporter(as_json=asked.as_json),
        "device": asked.device,
        "overwrite": asked.overwrite,
        "weights": asked.weights,
    }


def _light(asked: SimpleNamespace) -> dict[str, Any]:
    return {"light": asked.light, "theta": asked.theta, "phi": asked.phi, "size": asked.size}


def _backdrop(asked: SimpleNamespace) -> dict[str, Any]:
    return {"sweep": asked.sweep, "background": asked.background, "intensity": asked.intensity}


def _members(asked: SimpleNamespace) -> int | None:
    return None if asked.ensemble == 1 else asked.ensemble


def _refuse(given: dict[str, Any], of: str = "shadows, and --image asks for another picture") -> None:
    """Raise UserError where one of these options was given."""
    from shadowlab.errors import UserError

    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name} is for {of}, or leave --{name} out")
