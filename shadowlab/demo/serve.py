"""Serving the page to this machine alone."""

import logging
import os
import socket
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

import shadowlab
from diagnostics.files import read_bytes
from shadowlab.console import Reporter
from shadowlab.data import decode
from shadowlab.demo.albedo_page import build_albedo_page
from shadowlab.demo.editing_page import build_editing_page
from shadowlab.demo.insertion_page import build_insertion_page
from shadowlab.demo.page import build_page, style, theme
from shadowlab.demo.studio import Studio
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.inference import LoadedModel, Weights, load_generator, open_model
from shadowlab.tasks.editing import EditingGenerator

HOST = "127.0.0.1"
_RENDERS = Path(shadowlab.__file__).parent / "assets" / "renders"
_PAIRS = _RENDERS.with_name("albedo")
_EXAMPLE = "obj_0003_light_0"


def run_demo(
    place: str,
    reporter: Reporter,
    *,
    port: int | None = None,
    device: str | None = None,
    weights: Weights = "ema",
    opens_browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C. Nothing is sent to any other machine, and no other machine is answered.

    Args:
        place: of the model; see `find_model`.
        port: of 127.0.0.1; None: the first free one from 7860 on.
        opens_browser: show the page in the user's browser.

    Raises:
        UserError: there is no model, it is another task's, or the port is taken.
        MissingDependencyError: gradio is not installed.
    """
    gradio = _gradio()
    chosen = _free_port(port)
    model = open_model(place, device=device, weights=weights)
    with tempfile.TemporaryDirectory(prefix="shadowlab-demo-") as temporary:
        folder = Path(temporary)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        page = _page(gradio, model, folder)
        _launch(page, gradio, chosen, folder, opens_browser)
        reporter.say(f"http://{HOST}:{chosen}: {model.text}; Ctrl-C ends it")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            reporter.say("ended")
        finally:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports what is cancelled here as errors
            page.server.force_exit = True  # without waiting for pages that are open
            page.close(verbose=False)


def _page(gradio: ModuleType, model: LoadedModel, folder: Path) -> Any:
    """That of the model's task. folder: for files that the page shows or makes."""
    generator: Any = load_generator(model)
    match model.task.name:
        case "albedo":
            return build_albedo_page(gradio, generator, _example_beauty(folder), title=model.text)
        case "insertion":
            return build_insertion_page(gradio, generator, _example_insertion(folder), title=model.text)
        case "editing":
            return build_editing_page(gradio, generator, _example_edit(folder, generator), title=model.text)
        case "shadow":
            return build_page(gradio, Studio(generator), _example(folder), folder, title=model.text, steps=1)
        case name:
            raise UserError(f"{model.name}: a model of the task {name}, of which the demo has no page")


def _gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it asks for newer versions at once
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gradio
    except ImportError as error:
        raise MissingDependencyError("the demo needs gradio: pip install 'shadowlab[demo]'") from error
    return gradio


def _free_port(asked: int | None) -> int:
    for port in (asked,) if asked is not None else range(7860, 7960):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if asked is not None:
                    raise UserError(f"--port {asked}: cannot be used ({error.strerror}); choose another") from error
            else:
                return port
    raise UserError("--port: 7860 to 7959 are all in use; choose another")


def _launch(page: Any, gradio: ModuleType, port: int, folder: Path, opens_browser: bool) -> None:
    page.queue(default_concurrency_limit=1).launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=opens_browser,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        allowed_paths=[str(folder)],
        max_file_size="64mb",
        theme=theme(gradio),
        css=style(),
    )


def _example_beauty(folder: Path) -> Path:
    """A beauty of the embedded pairs."""
    file = folder / "example.png"
    decode(read_bytes(_PAIRS / "beauty" / f"{_EXAMPLE}.png"), "the example").save(file)
    return file


def _example_insertion(folder: Path) -> tuple[Path, ...]:
    """Target, object and mask of a shipped row."""
    names = ("targets/obj_0003_0.png", "objects/obj_0003.png", "masks/obj_0003_0.png")
    files = tuple(folder / f"example-{Path(name).parent}.png" for name in names)
    for name, file in zip(names, files, strict=True):
        decode(read_bytes(_RENDERS.with_name("insertion") / name), "the example").save(file)
    return files


def _example_edit(folder: Path, generator: EditingGenerator) -> tuple[Path, ...]:
    """A picture that ships, as this edit takes one, and its mask where it has one."""
    pictures = generator.example()
    files = tuple(folder / f"example-{number}.png" for number in range(len(pictures)))
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture).save(file)
    return files


def _example(folder: Path) -> Path:
    """An object of the embedded renders, with its mask as alpha."""
    whole = decode(read_bytes(_RENDERS / "objects" / f"{_EXAMPLE}.png"), "the example").convert("RGB")
    whole.putalpha(decode(read_bytes(_RENDERS / "masks" / f"{_EXAMPLE}.png"), "its mask").convert("L"))
    file = folder / "example.png"
    whole.save(file)
    return file
