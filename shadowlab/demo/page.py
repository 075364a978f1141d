"""The page of the demo, in gradio."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostics.files import read_text
from shadowlab.demo.studio import Look, Studio, Subject
from shadowlab.errors import UserError
from shadowlab.tasks.shadow import PRESETS, RANGES, Light

_ASSETS = Path(__file__).parent / "assets"
_START = dict(zip(RANGES, (30.0, 60.0, 4.0), strict=True))
_FONTS = ["system-ui", "sans-serif"]  # gradio's own come from the network
_FAST = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_id": "model", "concurrency_limit": 1}
_CSS = """
#title { margin-bottom: 0 } #title p { color: var(--body-text-color-subdued) }
footer { display: none !important }
.image-frame img, .image-container img { width: 100%; height: 100%; object-fit: contain }
"""


def build_page(gradio: Any, studio: Studio, example: Path, folder: Path, *, title: str, steps: int) -> Any:
    """The page, not yet served.

    Args:
        gradio: the module.
        example: an object with alpha that is there when the page opens. folder: for files that are downloaded.
        title: of the model, for people. steps: at first.
    """
    gr = gradio
    with gr.Blocks(title="shadowlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            f"# shadowlab\nThe shadow of your object under a light that you move. Model: {title}.", elem_id="title"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                picture = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
                thing = gr.Image(str(example), label="Object (PNG or JPEG)", elem_id="object", height=230, **picture)
                mask = gr.Image(label="Mask, if it has no alpha", elem_id="mask", height=170, **picture)
                ground = gr.Image(label="Background", elem_id="background", height=170, **picture)
            with gr.Column(scale=1, min_width=260):
                dome = _dome(gr)
                presets = gr.Radio(list(PRESETS), label="Light", elem_id="presets")
                theta, phi, size = (_slider(gr, name, value) for name, value in _START.items())
                with gr.Row():
                    intensity = gr.Slider(0, 1.5, 0.7, step=0.05, label="intensity", elem_id="intensity")
                    colour = gr.ColorPicker("#000000", label="colour", elem_id="colour")
                with gr.Row():
                    number = gr.Slider(1, 20, steps, step=1, label="steps", elem_id="steps")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
            with gr.Column(scale=2, min_width=320):
                seen = {"interactive": False, "type": "numpy", "buttons": ["fullscreen"]}
                laid = gr.Image(label="Composite", format="jpeg", elem_id="composite", height=420, **seen)
                shadow = gr.Image(label="Shadow map", format="png", elem_id="shadow", height=260, **seen)
                note = gr.Markdown(elem_id="note")
                with gr.Row():
                    make = gr.Button("Files at full size", elem_id="make")
                    files = gr.Files(label="Download", interactive=False, elem_id="files", height=110)

        what = [thing, mask, ground, theta, phi, size, intensity, colour, number, seed]
        shown = [laid, shadow, note]
        draw, write = _drawing(gr, studio), _writing(gr, studio, folder)
        page.load(draw, what, shown, **_FAST)
        for one in (thing, mask, ground):
            one.change(draw, what, shown, **_FAST)
        for one in (theta, phi, size, intensity, colour, number, seed):
            one.input(draw, what, shown, **_FAST)
        for one in (theta, phi, size):  # the dome follows, in the browser alone
            one.input(None, [theta, phi, size], dome, js="(theta, phi, size) => ({theta, phi, size})", queue=False)
        dome.input(None, dome, [theta, phi], js="(light) => [light.theta, light.phi]", queue=False)
        # Not after the sliders have followed: of many moves the last alone is drawn.
        dome.input(lambda light, *given: draw(*_under(light, given)), [dome, *what], shown, **_FAST)
        named = presets.input(_preset, presets, [theta, phi, size, dome], show_progress="hidden")
        named.then(draw, what, shown, **_FAST)
        make.click(write, what, files, concurrency_id="model")
    return page


def theme(gradio: Any) -> Any:
    """That of gradio, with fonts of this machine."""
    return gradio.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])


def style() -> str:
    """CSS of the page."""
    return _CSS


def _dome(gr: Any) -> Any:
    html, css, js = (read_text(_ASSETS / f"hemisphere.{kind}") for kind in ("html", "css", "js"))
    return gr.HTML(_START, html_template=html, css_template=css, js_on_load=js, elem_id="dome", label="Light")


def _slider(gr: Any, name: str, value: float) -> Any:
    low, high = RANGES[name]
    unit = "" if name == "size" else ", degrees"
    step = {"theta": 0.5, "phi": 1, "size": 0.25}[name]
    return gr.Slider(low, high, value, step=step, label=f"{name}{unit}", elem_id=name)


def _preset(name: str) -> tuple[float, float, float, dict[str, float]]:
    theta, phi, size = PRESETS[name]
    return theta, phi, size, {"theta": theta, "phi": phi, "size": size}


def _under(light: dict[str, float], given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the page holds, under the light of the dome."""
    return *given[:3], light["theta"], light["phi"], *given[5:]


def _asked(studio: Studio, given: tuple[Any, ...]) -> tuple[Subject, Light, Look, int, int]:
    thing, mask, ground, theta, phi, size, intensity, colour, steps, seed = given
    if thing is None:
        raise UserError("drop a picture of an object")
    subject = studio.subject(thing, mask)
    return subject, (theta, phi, size), Look(ground, intensity, _hex(colour)), int(steps), int(seed or 0)


def _hex(colour: str) -> str:
    """gradio's colour picker says `rgba(18, 52, 86, 1)`, or `#123456`."""
    if not colour.startswith("rgba"):
        return colour
    parts = colour[5:-1].split(",")[:3]
    return "#" + "".join(f"{round(float(part)):02x}" for part in parts)


def _drawing(gr: Any, studio: Studio) -> Callable[..., Any]:
    def draw(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            shadow, laid = studio.live(*_asked(studio, given))
        except UserError as error:
            return gr.skip(), gr.skip(), f"**{_shown(error, given)}**"
        return laid, shadow, f"{(time.perf_counter() - began) * 1000:.0f} ms"

    return draw


def _writing(gr: Any, studio: Studio, folder: Path) -> Callable[..., Any]:
    def write(*given: Any) -> Any:
        try:
            return [str(file) for file in studio.files(*_asked(studio, given), folder)]
        except UserError as error:
            raise gr.Error(_shown(error, given)) from error

    return write


def _shown(error: UserError, given: tuple[Any, ...]) -> str:
    """The message with the names that files had before they were dropped."""
    text = str(error)
    for path in given[:3]:
        text = text if path is None else text.replace(path, Path(path).name)
    return text
