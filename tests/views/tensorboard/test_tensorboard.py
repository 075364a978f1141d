"""TensorBoard itself, over its HTTP API, on a run of the command line: every leaf module is there."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from diagnostics.board.tags import BlockNumbers, within_block
from diagnostics.modules import leaf_modules
from diagnostics.records.lines import read_records
from shadowlab.models.surgery import remove_cross_attention
from tests.boards import serving


@pytest.fixture(scope="module")
def api(board_run: Path) -> Iterator[str]:
    """Address of `shadowlab tensorboard` on the run, on any free port; Ctrl-C ends it with 0."""
    with serving(board_run) as address:
        yield address


def fetch(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)


def shown_steps(api: str) -> list[int]:
    """Steps of train/loss that the server shows, once it has read both event files in the background."""
    for _ in range(90):
        try:
            points = fetch(f"{api}/data/plugin/scalars/scalars?run=board&tag=train/loss")
        except urllib.error.HTTPError:  # not read yet
            points = []
        if len(points) >= 4:
            break
        time.sleep(1)
    return [step for _, step, _ in points]


def test_every_leaf_module_has_activation_and_gradient_norms(board_run: Path, api: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(board_run / "checkpoints" / "step-00000004" / "unet")
    remove_cross_attention(unet)
    leaves = leaf_modules(unet)
    shown_steps(api)
    tags = {tag for listing in fetch(f"{api}/data/plugin/scalars/tags").values() for tag in listing}
    blocks = BlockNumbers()
    for record in read_records(board_run / "metrics.jsonl"):
        blocks.learn(record)

    def missing(key: str) -> list[str]:
        return [name for name in leaves if f"{blocks.group(name)}/{key}/{within_block(name)}" not in tags]

    assert not missing("activation_norm")
    # time_proj included, though nothing flows back to the sinusoids of t: it is drawn as 0.
    assert not missing("gradient_norm")
    histograms = fetch(f"{api}/data/plugin/histograms/tags")
    assert any(tag.startswith("histogram_gradient/conv_in") for listing in histograms.values() for tag in listing)


def test_steps_are_monotone_across_a_resume(board_run: Path, api: str) -> None:
    steps = [json.loads(line) for line in (board_run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == [1, 2, 3, 4]
    assert shown_steps(api) == [1, 2, 3, 4]


def test_charts_pictures_and_words_are_served(board_run: Path, api: str) -> None:
    shown_steps(api)
    charts = fetch(f"{api}/data/plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in charts][:2] == ["00 run", "00 validation"]
    titles = [[chart["title"] for chart in category["chart"]] for category in charts]
    assert len(titles) == 6 and all(len(own) >= 10 and own == sorted(own) for own in titles[2:])
    pattern = urllib.parse.quote(charts[2]["chart"][0]["multiline"]["tag"][0])
    found = fetch(f"{api}/data/plugin/custom_scalars/scalars?run=board&tag={pattern}")
    assert found["regex_valid"] and found["tag_to_events"]
    pattern = urllib.parse.quote(charts[0]["chart"][0]["multiline"]["tag"][0])
    for run in ("board/Loss/training", "board/Loss/validation"):  # a colour each
        found = fetch(f"{api}/data/plugin/custom_scalars/scalars?run={urllib.parse.quote(run)}&tag={pattern}")
        assert list(found["tag_to_events"]) == ["00 run/Loss"]
    pictures = fetch(f"{api}/data/plugin/images/tags")["board"]
    assert {"00 validation/comparison", "00 validation/light_sweep"} < set(pictures)
    assert any(tag.startswith("00 run, heat map of gradient_norm/") for tag in pictures)
    assert fetch(f"{api}/data/plugin/text/tags") == {"board": ["stage/train/text_summary"]}
    assert (board_run / "samples" / "light-sweep-step-00000004.png").is_file()
