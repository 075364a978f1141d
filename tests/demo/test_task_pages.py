"""The pages of albedo, insertion and edits: what they draw of what is dropped, and how they look in a real browser.

SHADOWLAB_DEMO_PICTURES=FOLDER keeps a picture of each page there.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from shadowlab.demo import albedo_page, editing_page, insertion_page, serve
from shadowlab.inference import load_generator
from tests.browser import Browser, browser, requires_chromium
from tests.demo.test_demo_in_browser import SLIDE, changed, opened, picture_of
from tests.inference.made import made_model

gradio = pytest.importorskip("gradio", reason="the extra demo is not installed: pip install 'shadowlab[demo]'")
__all__ = ["browser"]
PRESETS = ("albedo-tiny", "insertion-tiny", "white-balance-tiny", "object-removal-tiny", "paint-to-image-tiny")
PICTURES = os.environ.get("SHADOWLAB_DEMO_PICTURES")
_SERVED = """
import sys
from shadowlab.console import Reporter
from shadowlab.demo import serve
from tests.inference.made import made_model
serve.open_model = lambda *_, **__: made_model(sys.argv[1])
serve.run_demo("made here", Reporter(), device="cpu")
"""


@pytest.fixture(scope="module", params=PRESETS)
def drawing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any], int]:
    """What the page calls, what it is given when it opens, and how many of that, from which place on, are files."""
    folder, generator = tmp_path_factory.mktemp("page"), load_generator(made_model(request.param))
    match request.param:
        case "albedo-tiny":
            given = [str(serve._example_beauty(folder)), 1, "median", 1, 0]
            return albedo_page._drawing(gradio, generator), given, 0
        case "insertion-tiny":
            return (
                insertion_page._drawing(gradio, generator),
                [*map(str, serve._example_insertion(folder)), 1, 1, 0],
                0,
            )
        case _:
            files = [str(file) for file in serve._example_edit(folder, generator)]
            return editing_page._drawing(gradio, generator), [True, 1, 0, *files], 3


def test_the_page_draws_what_is_there_when_it_opens_and_says_what_is_missing(drawing: Any) -> None:
    draw, given, first = drawing
    picture, *_, note = draw(*given)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and re.fullmatch(r"\d+ ms", note)
    for place, value in enumerate(given):
        if isinstance(value, str) and value.endswith(".png"):
            *_, said = draw(*given[:place], None, *given[place + 1 :])
            assert place >= first and said.startswith("**drop a ")


def test_what_is_wrong_with_a_file_is_said_by_its_name_alone(drawing: Any, tmp_path: Path) -> None:
    draw, given, _ = drawing
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for place, value in enumerate(given):
        if isinstance(value, str) and value.endswith(".png"):
            *_, said = draw(*given[:place], str(tmp_path / "torn.png"), *given[place + 1 :])
            assert said.startswith("**") and "torn.png" in said and str(tmp_path) not in said


def test_a_page_of_an_edit_keeps_what_it_says(tmp_path: Path) -> None:
    generator = load_generator(made_model("object-removal-tiny"))
    files = serve._example_edit(tmp_path, generator)
    given, mask = (np.asarray(Image.open(file)) for file in files)
    draw = editing_page._drawing(gradio, generator)
    kept, painted = (draw(keep, 1, 0, *map(str, files))[0] for keep in (True, False))
    assert np.array_equal(kept[mask < 128], given[mask < 128]) and not np.array_equal(kept, given)
    assert not np.array_equal(painted[mask < 128], given[mask < 128])


@pytest.fixture(params=PRESETS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Preset and address of a demo in a process of its own."""
    words = [sys.executable, "-P", "-c", _SERVED, request.param]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:\d+): made here", line)
    try:
        assert found is not None, line
        yield request.param, found[1]
    finally:
        process.send_signal(signal.SIGINT)
        last, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and last.strip() == "ended", last


@requires_chromium
def test_the_page_in_a_browser(served: tuple[str, str], browser: Browser) -> None:
    preset, address = served
    shown = "#albedo" if preset == "albedo-tiny" else "#made"
    browser.resize(1200, 900)
    opened(browser, address, shown)
    before = picture_of(browser, shown)
    after = changed(browser, lambda: browser.run(SLIDE, "#steps", 3), shown)
    assert browser.find(f"{shown} img").size["height"] > 300  # a small picture fills its frame
    assert before.shape == after.shape and not np.array_equal(before, after)
    assert {urlsplit(one).hostname for one in browser.requests() if one.startswith("http")} == {"127.0.0.1"}
    assert browser.errors() == []
    if PICTURES is not None:
        browser.screenshot(Path(PICTURES) / f"{preset}.png")
