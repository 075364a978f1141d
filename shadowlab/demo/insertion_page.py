"""The page of an insertion model, in gradio: target, object and mask next to the target with the object in it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shadowlab.errors import UserError
from shadowlab.tasks.insertion import InsertionGenerator

_SHOWN = {"show_progress": "minimal", "trigger_mode": "always_last", "concurrency_id": "model", "concurrency_limit": 1}


def build_insertion_page(gradio: Any, generator: InsertionGenerator, examples: tuple[Path, ...], *, title: str) -> Any:
    """The page, not yet served.

    Args:
        gradio: the module.
        examples: target, object and mask that are there when the page opens.
        title: of the model, for people.
    """
    gr = gradio
    with gr.Blocks(title="shadowlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# shadowlab\nYour object in your picture. Model: {title}.", elem_id="title")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                kind = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"], "height": 220}
                names = ("Target", "Object", "Mask: white is filled")
                pictures = [
                    gr.Image(str(file), label=name, elem_id=name.split()[0].lower(), **kind)
                    for name, file in zip(names, examples, strict=True)
                ]
                with gr.Row():
                    steps = gr.Slider(1, 50, 1, step=1, label="steps", elem_id="steps")
                    guidance = gr.Slider(1, 10, 1, step=0.5, label="guidance", elem_id="guidance")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
            with gr.Column(scale=2, min_width=320):
                seen = {"interactive": False, "type": "numpy", "format": "png", "buttons": ["fullscreen", "download"]}
                made = gr.Image(label="Target with the object", elem_id="made", height=480, **seen)
                note = gr.Markdown(elem_id="note")
        what, shown = [*pictures, steps, guidance, seed], [made, note]
        draw = _drawing(gr, generator)
        page.load(draw, what, shown, **_SHOWN)
        for picture in pictures:
            picture.change(draw, what, shown, **_SHOWN)
        for one in (steps, guidance, seed):
            one.input(draw, what, shown, **_SHOWN)
    return page


def _drawing(gr: Any, generator: InsertionGenerator) -> Callable[..., Any]:
    def draw(
        target: str | None, own: str | None, mask: str | None, steps: float, guidance: float, seed: float | None
    ) -> Any:
        began = time.perf_counter()
        try:
            if target is None or own is None or mask is None:
                raise UserError("drop a target, an object and a mask")
            found = generator.generate(
                target, own, mask, steps=int(steps), guidance=float(guidance), seed=int(seed or 0)
            )
        except UserError as error:
            text = str(error)
            for path in (target, own, mask):
                text = text.replace(path, Path(path).name) if path else text
            return gr.skip(), f"**{text}**"
        return np.round(found * 255).astype(np.uint8), f"{(time.perf_counter() - began) * 1000:.0f} ms"

    return draw
