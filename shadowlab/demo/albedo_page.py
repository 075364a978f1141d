"""The page of an albedo model, in gradio: a picture next to its albedo, and where predictions disagree."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shadowlab.errors import UserError
from shadowlab.tasks.albedo import AlbedoGenerator

_MOST_MEMBERS = 16
_SHOWN = {"show_progress": "minimal", "trigger_mode": "always_last", "concurrency_id": "model", "concurrency_limit": 1}


def build_albedo_page(gradio: Any, generator: AlbedoGenerator, example: Path, *, title: str) -> Any:
    """The page, not yet served.

    Args:
        gradio: the module.
        example: a picture that is there when the page opens.
        title: of the model, for people.
    """
    gr = gradio
    with gr.Blocks(title="shadowlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# shadowlab\nThe albedo of your picture. Model: {title}.", elem_id="title")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                kind = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
                picture = gr.Image(str(example), label="Picture (PNG or JPEG)", elem_id="image", height=300, **kind)
                members = gr.Slider(1, _MOST_MEMBERS, 1, step=1, label="ensemble", elem_id="ensemble")
                reduction = gr.Radio(["median", "mean"], value="median", label="of the ensemble", elem_id="reduction")
                with gr.Row():
                    steps = gr.Slider(1, 20, 1, step=1, label="steps", elem_id="steps")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
            with gr.Column(scale=2, min_width=320):
                seen = {"interactive": False, "type": "numpy", "format": "png", "buttons": ["fullscreen", "download"]}
                albedo = gr.Image(label="Albedo", elem_id="albedo", height=420, **seen)
                spread = gr.Image(label="Uncertainty, of an ensemble", elem_id="uncertainty", height=260, **seen)
                note = gr.Markdown(elem_id="note")
        what, shown = [picture, members, reduction, steps, seed], [albedo, spread, note]
        draw = _drawing(gr, generator)
        page.load(draw, what, shown, **_SHOWN)
        picture.change(draw, what, shown, **_SHOWN)
        for one in (members, reduction, steps, seed):
            one.input(draw, what, shown, **_SHOWN)
    return page


def _drawing(gr: Any, generator: AlbedoGenerator) -> Callable[..., Any]:
    def draw(path: str | None, members: float, reduction: Any, steps: float, seed: float | None) -> Any:
        began = time.perf_counter()
        try:
            if path is None:
                raise UserError("drop a picture")
            found = generator.estimate(
                path, ensemble=int(members), reduction=reduction, steps=int(steps), seed=int(seed or 0)
            )
        except UserError as error:
            text = str(error) if path is None else str(error).replace(path, Path(path).name)
            return gr.skip(), gr.skip(), f"**{text}**"
        spread = None if found.uncertainty is None else _levels(found.uncertainty * 2)
        return _levels(found.albedo), spread, f"{(time.perf_counter() - began) * 1000:.0f} ms"

    return draw


def _levels(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> uint8."""
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
