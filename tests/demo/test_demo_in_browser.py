"""The page of the demo in a real browser: a file is dropped, the light moves, and nothing leaves the machine.

SHADOWLAB_DEMO_PICTURE=docs/pictures/demo.png makes the README's picture of it.
"""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, browser, requires_chromium

pytest.importorskip("gradio", reason="the extra demo is not installed: pip install 'shadowlab[demo]'")
__all__ = ["browser"]
pytestmark = requires_chromium
ROOT = Path(__file__).parents[2]
PICTURE = os.environ.get("SHADOWLAB_DEMO_PICTURE")
_DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0)), files = new DataTransfer();
files.items.add(new File([bytes], arguments[2], {type: "image/png"}));
const zone = document.querySelector(arguments[0] + " [aria-dropeffect]");
for (const kind of ["dragenter", "dragover", "drop"])
  zone.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: files}));
"""
SLIDE = """
const field = document.querySelector(arguments[0] + " input[type=range]");
field.value = arguments[1];
field.dispatchEvent(new Event("input", {bubbles: true}));
"""
_DRAG = """
const dome = () => document.querySelector("#dome svg"), box = dome().getBoundingClientRect();
const at = (kind, [x, y]) => dome().dispatchEvent(new PointerEvent(kind, {
  bubbles: true, pointerId: 1, clientX: box.left + box.width * x, clientY: box.top + box.height * y}));
at("pointerdown", arguments[0]);
at("pointermove", arguments[1]);
at("pointerup", arguments[1]);
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a demo of the model that ships."""
    words = [sys.executable, "-P", "-m", "cli.main", "demo", "small", "--device", "cpu"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:\d+): small, which ships", line)
    try:
        assert found is not None, line
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        last, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and last.strip() == "ended", last  # and no server's traceback


def until(found: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < limit, what
        time.sleep(0.1)
    return value


def picture_of(browser: Browser, selector: str) -> np.ndarray[Any, Any]:
    """What a picture of the page shows, (H, W) or (H, W, 3)."""
    with urlopen(browser.run("return document.querySelector(arguments[0] + ' img').src", selector)) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def changed(browser: Browser, action: Callable[[], Any], selector: str = "#shadow") -> np.ndarray[Any, Any]:
    """The picture, once `action` has changed it."""
    source = "return document.querySelector(arguments[0] + ' img')?.src"
    before = browser.run(source, selector)
    action()
    until(lambda: browser.run(source, selector) not in (before, None), f"{selector} stays as it is")
    return picture_of(browser, selector)


def centroid(shadow: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Column and row, as shares of the picture."""
    weights = shadow.astype(float).reshape(*shadow.shape[:2], -1)[..., 0]
    rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return float((columns * weights).sum() / weights.sum() / weights.shape[1]), float(
        (rows * weights).sum() / weights.sum() / weights.shape[0]
    )


def opened(browser: Browser, address: str, shown: str = "#shadow") -> None:
    browser.open(address)
    until(lambda: browser.find_all(f"{shown} img"), f"nothing is shown in {shown}")


def test_half_a_turn_of_the_light_moves_the_shadow_to_the_other_side(browser: Browser, address: str) -> None:
    opened(browser, address)
    right = centroid(changed(browser, lambda: browser.run(SLIDE, "#phi", 180)))
    left = centroid(changed(browser, lambda: browser.run(SLIDE, "#phi", 0)))
    assert right[0] > left[0] + 0.1
    assert abs(right[1] - left[1]) < 0.1
    assert {urlsplit(one).hostname for one in browser.requests() if one.startswith("http")} == {"127.0.0.1"}
    assert browser.errors() == []


def test_the_light_on_the_dome_is_dragged_and_sliders_follow(browser: Browser, address: str) -> None:
    opened(browser, address)
    far_left = centroid(changed(browser, lambda: browser.run(_DRAG, [0.5, 0.5], [0.85, 0.5])))
    until(lambda: browser.run("return document.querySelector('#phi input[type=range]').value") == "0", "phi stays")
    assert float(browser.run("return document.querySelector('#theta input[type=range]').value")) > 30
    far_right = centroid(changed(browser, lambda: browser.run(_DRAG, [0.85, 0.5], [0.15, 0.5])))
    assert far_right[0] > far_left[0] + 0.1
    light = browser.run("return Number(document.querySelector('#dome .light').getAttribute('x'))")
    assert light < -50  # it stays where it was dropped


def test_a_file_is_dropped_and_what_is_wrong_with_it_is_said(browser: Browser, address: str, tmp_path: Path) -> None:
    opened(browser, address)
    disc = np.zeros((90, 160, 4), np.uint8)
    rows, columns = np.mgrid[:90, :160]
    disc[(rows - 40) ** 2 + (columns - 80) ** 2 < 400] = (200, 60, 30, 255)
    file = tmp_path / "disc.png"
    Image.fromarray(disc).save(file)

    def drop(selector: str, path: Path) -> None:
        browser.run(_DROP, selector, base64.b64encode(path.read_bytes()).decode(), path.name)

    laid = changed(browser, lambda: drop("#object", file), "#composite")
    assert laid.shape == (90, 160, 3)
    assert np.abs(laid[40, 80].astype(int) - (200, 60, 30)).max() < 12  # a JPEG
    opaque = tmp_path / "opaque.png"
    Image.fromarray(disc[..., :3]).save(opaque)
    drop("#object", opaque)
    said = until(lambda: "no mask" in (text := browser.find("#note").text) and text, "nothing is said")
    assert said.startswith("opaque.png: no mask was given")


def test_a_preset_sets_every_slider_and_files_come_at_full_size(browser: Browser, address: str) -> None:
    opened(browser, address)
    changed(browser, lambda: browser.run("document.querySelector('#presets input[value=evening]').click()"))
    values = [browser.run(f"return document.querySelector('#{n} input[type=range]').value") for n in ("theta", "phi")]
    assert values == ["45", "160"]
    browser.find("#make").click()
    until(lambda: len(browser.find_all("#files a[download]")) == 2, "no files are offered")
    for link in browser.find_all("#files a[download]"):
        with urlopen(str(link.get_attribute("href"))) as answer:
            assert Image.open(io.BytesIO(answer.read())).size == (128, 128)


@pytest.mark.skipif(PICTURE is None, reason="SHADOWLAB_DEMO_PICTURE names no file: no picture is wanted")
def test_picture_for_the_readme(browser: Browser, address: str) -> None:
    assert PICTURE is not None
    browser.resize(1400, 860)
    opened(browser, address)
    changed(browser, lambda: browser.run(_DRAG, [0.5, 0.5], [0.75, 0.3]))
    time.sleep(1)
    assert browser.screenshot(ROOT / PICTURE).stat().st_size > 20_000
