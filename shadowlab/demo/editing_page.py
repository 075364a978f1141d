"""The page of an editing model, in gradio: a picture, and the mask where the edit has one, next to the edited one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shadowlab.errors import UserError
from shadowlab.tasks.editing import EditingGenerator

_SHOWN = {"show_progress": "minimal", "trigger_mode": "always_last", "concurrency_id": "model", "concurrency_limit": 1}


def build_editing_page(gradio: Any, generator: EditingGenerator, examples: tuple[Path, ...], *, title: str) -> Any:
    """The page, not yet served.

    Args:
        gradio: the module.
        examples: a picture, and its mask where the edit has one, that are there when the page opens.
        title: of the model, for people.
    """
    gr, edit = gradio, generator.edit
    with gr.Blocks(title="shadowlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# shadowlab\nYour picture, {edit.title}. Model: {title}.", elem_id="title")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                kind = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"], "height": 260}
                names = ("Picture (PNG or JPEG)", "Mask (white: object and shadow)")
                pictures = [
                    gr.Image(str(file), label=name, elem_id=name.split()[0].lower(), **kind)
                    for name, file in zip(names, examples, strict=False)
                ]
                keep = gr.Checkbox(
                    generator.keep_input, label=f"keep {edit.keeps}", elem_id="keep", visible=bool(edit.keeps)
                )
                with gr.Row():
                    steps = gr.Slider(1, 20, 1, step=1, label="steps", elem_id="steps")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
            with gr.Column(scale=2, min_width=320):
                seen = {"interactive": False, "type": "numpy", "format": "png", "buttons": ["fullscreen", "download"]}
                made = gr.Image(label=f"Edited: {edit.title}", elem_id="made", height=480, **seen)
                note = gr.Markdown(elem_id="note")
        what, shown = [keep, steps, seed, *pictures], [made, note]
        draw = _drawing(gr, generator)
        page.load(draw, what, shown, **_SHOWN)
        for picture in pictures:
            picture.change(draw, what, shown, **_SHOWN)
        for one in (keep, steps, seed):
            one.input(draw, what, shown, **_SHOWN)
    return page


def _drawing(gr: Any, generator: EditingGenerator) -> Callable[..., Any]:
    def draw(keep: bool, steps: float, seed: float | None, image: str | None, mask: str | None = None) -> Any:
        began = time.perf_counter()
        try:
            if image is None:
                raise UserError("drop a picture")
            if mask is None and generator.edit.has_mask:
                raise UserError("drop a mask: white is the object with its shadow")
            found = generator.generate(image, mask, steps=int(steps), seed=int(seed or 0), keep_input=keep)
        except UserError as error:
            text = str(error)
            for path in (image, mask):
                text = text.replace(path, Path(path).name) if path else text
            return gr.skip(), f"**{text}**"
        return np.round(found * 255).astype(np.uint8), f"{(time.perf_counter() - began) * 1000:.0f} ms"

    return draw
