"""TensorBoard's pages as a person gets them, in Chromium: tags in order, charts, heat maps, light sweeps, words."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diagnostics.board.tags import BlockNumbers
from diagnostics.records.lines import read_records
from tests.boards import serving
from tests.browser import Browser, browser, requires_chromium  # noqa: F401

pytestmark = requires_chromium

PICTURE = os.environ.get("SHADOWLAB_DOCS")  # folder for the picture of the README, where one is wanted
PICTURE_RUN = os.environ.get("SHADOWLAB_DOCS_RUN")  # a longer run to take it of

# Every element of the page, inside shadow roots too: half of TensorBoard's pages are Polymer.
_ALL = """
const found = [];
const walk = root => root.querySelectorAll('*').forEach(e => { found.push(e); if (e.shadowRoot) walk(e.shadowRoot); });
walk(document);
"""


@pytest.fixture(scope="module")
def address(board_run: Path) -> Iterator[str]:
    with serving(board_run) as found:
        yield found


def texts(page: Browser) -> list[str]:
    """Text of every visible element that has some of its own, in the order of the page."""
    script = """
    const own = e => [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent.trim()).join('');
    return found.filter(e => e.getClientRects().length && own(e)).map(own);
    """
    return page.run(_ALL + script)


def until(page: Browser, look: Callable[[], Any], what: str) -> Any:
    """What `look` gives once it gives something."""
    for _ in range(120):
        value = look()
        if value:
            return value
        time.sleep(0.5)
    return pytest.fail(f"{what}: not within a minute; the page says {texts(page)[:60]}")


def filtered(page: Browser, pattern: str) -> None:
    """Type into the page's filter of tags."""
    script = """
    const label = e => e.placeholder || e.getRootNode().host?.getAttribute('label') || '';
    const [box] = found.filter(
        e => e.tagName == 'INPUT' && e.getClientRects().length && label(e).startsWith('Filter tags'));
    if (box) box.focus();
    return box;
    """
    until(page, lambda: page.run(_ALL + script), "a filter of tags").send_keys(pattern)


def pictures(page: Browser) -> list[tuple[int, int]]:
    """Natural sizes of the pictures that were loaded and are shown."""
    script = """
    return found.filter(e => e.tagName == 'IMG' && e.complete && e.naturalWidth && e.getClientRects().length)
        .map(e => [e.naturalWidth, e.naturalHeight]);
    """
    return [(width, height) for width, height in page.run(_ALL + script)]


@pytest.fixture(autouse=True)
def _no_errors(browser: Browser) -> Iterator[None]:  # noqa: F811
    """TensorBoard logs warnings of its own (Three.js twice, software WebGL), but no error."""
    yield
    assert browser.errors() == []


def test_blocks_stand_in_the_order_of_execution(browser: Browser, address: str, board_run: Path) -> None:  # noqa: F811
    blocks = BlockNumbers()
    for record in read_records(board_run / "metrics.jsonl"):
        blocks.learn(record)
    browser.open(f"{address}/#timeseries")
    shown = until(
        browser, lambda: [text for text in texts(browser) if text in blocks.groups] or None, "groups of the blocks"
    )
    assert tuple(dict.fromkeys(shown)) == blocks.groups[: len(set(shown))]
    filtered(browser, "down_blocks.1/gradient_norm/.*conv1$")
    group = next(group for group in blocks.groups if group.endswith("down_blocks.1"))
    titles = until(
        browser,
        lambda: [
            title
            for title in browser.run(_ALL + "return found.map(e => e.getAttribute('title')).filter(Boolean)")
            if title.startswith(f"{group}/gradient_norm/")
        ],
        "the card of one layer's gradient norm",
    )
    assert f"{group}/gradient_norm/resnets.0.conv1" in titles


def test_the_first_screen_is_the_run(browser: Browser, address: str) -> None:  # noqa: F811
    """Loss and gradient norm, under the run's name; each line of a chart in another colour."""
    browser.open(f"{address}/#timeseries")
    shown = until(browser, lambda: [t for t in texts(browser) if t.startswith("00 ")] or None, "the run's groups")
    groups = list(dict.fromkeys(text for text in shown if "/" not in text))
    assert groups[0] == "00 run" and "00 validation" in groups
    assert not any(text.startswith("01 ") for text in shown[: shown.index("00 validation")])
    assert "." not in texts(browser) and "board" in texts(browser)
    colours = """
    const rows = found.filter(e => e.tagName == 'RUNS-DATA-TABLE' || e.tagName == 'TB-DATA-TABLE-CONTENT-ROW');
    const of = name => found.filter(e => e.getAttribute && (e.getAttribute('title') || e.textContent.trim()) == name);
    return found.filter(e => e.classList && e.classList.contains('run-color-swatch') && e.getClientRects().length)
        .map(e => getComputedStyle(e).backgroundColor);
    """
    seen = until(browser, lambda: browser.run(_ALL + colours), "the colours of the runs")
    assert len(set(seen)) >= 4


def test_charts_of_blocks_are_drawn(browser: Browser, address: str) -> None:  # noqa: F811
    browser.open(f"{address}/#custom_scalars")
    until(browser, lambda: "Loss by t (0 is noise, 1 is data)" in texts(browser), "the charts of the run")
    open_category = """
    const [title] = found.filter(e => e.getClientRects().length && e.textContent.trim().startsWith(arguments[0])
        && /heading|title|category/i.test(e.className + e.tagName));
    if (title) title.click();
    return Boolean(title);
    """
    assert browser.run(_ALL + open_category, "gradient norm of each layer")
    lines = (
        _ALL
        + "return found.filter(e => e.tagName == 'VZ-CHART-HELPER' || e.tagName.startsWith('VZ-LINE-CHART')).length"
    )
    until(browser, lambda: browser.run(lines) > 5, "charts of the blocks")
    until(browser, lambda: any(t.startswith("Matches (") and t != "Matches (0)" for t in texts(browser)), "matches")


@pytest.mark.parametrize(
    ("tag", "width"), [("00 run, heat map of gradient_norm/all layers", 500), ("00 validation/light_sweep", 400)]
)
def test_pictures_are_shown(browser: Browser, address: str, tag: str, width: int) -> None:  # noqa: F811
    browser.open(f"{address}/#images")
    filtered(browser, tag)
    sizes = until(browser, lambda: pictures(browser), tag)
    assert any(text == tag for text in texts(browser))
    assert max(size[0] for size in sizes) >= width


def test_the_verdict_of_the_stage_can_be_read(browser: Browser, address: str) -> None:  # noqa: F811
    browser.open(f"{address}/#text")
    until(browser, lambda: "train: passed" in texts(browser), "the verdict")


@pytest.mark.skipif(PICTURE is None or PICTURE_RUN is None, reason="SHADOWLAB_DOCS, SHADOWLAB_DOCS_RUN are not set")
def test_picture_of_the_readme(browser: Browser) -> None:  # noqa: F811
    """SHADOWLAB_DOCS=docs SHADOWLAB_DOCS_RUN=runs/NAME python -m pytest tests/test_tensorboard_in_browser.py"""
    with serving(Path(PICTURE_RUN or "")) as found:
        browser.resize(1200, 1000)
        browser.open(f"{found}/#images")
        filtered(browser, "heat map of gradient_norm/00")
        until(browser, lambda: pictures(browser), "a heat map")
        actual = (
            "found.filter(e => e.tagName == 'PAPER-CHECKBOX' && /actual/.test(e.textContent)).forEach(e => e.click())"
        )
        browser.run(_ALL + actual)
        time.sleep(2)
        file = browser.screenshot(Path(PICTURE or "") / "tensorboard.png")
        assert file.stat().st_size < 400_000
