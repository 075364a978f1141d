"""The page of an evaluation: what a person sees of it, on a desk and on a phone, whatever names are in it."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shadowlab.charts import Metric
from shadowlab.views.page import JudgedSample, SampleCell, write_evaluation_page
from tests.browser import Browser, browser, requires_chromium

__all__ = ["browser"]

METRICS = (Metric("soft_iou", "soft IoU"), Metric("rmse", "RMSE", higher_is_better=False, form=".4f"))
METHODS = ["model, 1 step", "model, 20 steps", "all black", "inflated silhouette"]
EVIL = "<script>document.title='ran'</script><img src=https://example.org/x.png>"


def document() -> dict[str, Any]:
    def summary(mean: float, std: float | None) -> dict[str, Any]:
        return {"mean": mean, "std": std, "low": mean - 0.01, "high": mean + 0.01}

    values = {"model, 1 step": (0.7, 0.03), "model, 20 steps": (0.8, 0.04), "all black": (0.0, 0.1)}
    values["inflated silhouette"] = (0.6, 0.08)
    methods = {
        name: {"soft_iou": summary(iou, 0.001), "rmse": summary(error, None)} for name, (iou, error) in values.items()
    }
    track = {"num_samples": 150, "methods": methods}
    return {
        "tracks": {"softness_control": track, f"all, {EVIL}": track},
        "control": {"model, 1 step": {"turn": {"mean": 0.5, "low": None, "high": None, "num_samples": 1}}},
        "published": {"softness_control": {"published, 1 step": {"soft_iou": 0.768, "rmse": 0.02}}},
        "notes": ["haze decides the plain soft IoU", EVIL],
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(written, "PNG")
    captions = ["object", "truth", *(caption for name in METHODS for caption in (name, f"error of {name}"))]
    cells = tuple(SampleCell(caption, written.getvalue(), 64, 64) for caption in captions)
    write_evaluation_page(
        tmp_path / "evaluation.html",
        name="runs/first, step 200, EMA weights",
        document=document(),
        metrics=METRICS,
        ranking="soft_iou",
        ranked=METHODS[0],
        drawn=("soft_iou", "rmse"),
        methods=METHODS,
        steps=(1, 20),
        control_texts={"turn": "change when phi turns by 180"},
        facts=[("Data", EVIL), ("Seeds", "10")],
        samples=[JudgedSample("softness_control", "worst 1", f"s_000 {EVIL}", "theta 30", 0.123, cells)],
    )
    return tmp_path / "evaluation.html"


@requires_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_it_shows_all_and_asks_no_network(page: Path, browser: Browser, width: int, scheme: str) -> None:
    browser.prefer(color_scheme=scheme)
    browser.resize(width, 900)
    browser.open(page)
    assert not browser.errors()
    assert not [address for address in browser.requests() if not address.startswith(("file:", "data:"))]
    assert browser.run("return document.title") == "runs/first, step 200, EMA weights: evaluation"
    assert browser.run("return document.documentElement.scrollWidth") <= width
    text = browser.text()
    for words in ("0.700 ± 0.001", "0.690 to 0.710", "published, 1 step", "0.768", "s_000", "EMA weights", "Control"):
        assert words in text, words
    drawn = browser.find_all(".pair img")
    assert len(drawn) == 2 + 2 * len(METHODS) and all(one.size["width"] >= 90 for one in drawn)
    assert len(browser.find_all(".curve")) == 4  # two metrics of two tracks
    assert [cell.text for cell in browser.find_all(".judged b")][:2] == ["0.0300", "0.800 ± 0.001"]
    published = browser.run("return getComputedStyle(document.querySelector('tr.published td')).fontStyle")
    assert published == "italic"
    bottom = browser.run(
        "const r = document.querySelectorAll('.judged')[0].parentElement; return r.scrollHeight - r.clientHeight"
    )
    assert bottom <= 1  # no row is hidden behind a bar
