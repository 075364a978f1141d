"""What of a record is drawn: bytes are bounded, nothing that matters is missed, the records alone decide."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tensorboard.compat.proto.summary_pb2 import Summary

from diagnostics.board import selection as board_selection
from diagnostics.board.layout import layout
from diagnostics.board.run_charts import RUN_CHARTS, ChartLine, RunChart
from diagnostics.board.selection import Drawn, Selection


def layer(norm: float = 1.0, *, bad: int = 0, headroom: float = 20.0) -> dict[str, Any]:
    own = {"norm": norm, "mean": 0.0, "std": 1.0, "max_abs": 2.0, "fraction_zero": 0.0}
    return {part: own | {"num_nonfinite": bad, "headroom_bits": headroom} for part in ("activation", "gradient")}


def record(step: int, layers: dict[str, Any], kind: str = "train") -> dict[str, Any]:
    parameters = {f"{name}.weight": {"gradient_norm": 0.5, "update_ratio": 1e-3} for name in layers}
    return {"kind": kind, "step": step, "loss": 0.5, "layers": layers, "parameters": parameters}


def values(drawn: list[Drawn]) -> dict[int, dict[str, float]]:
    """Step -> tag -> value, read by protobuf itself."""
    shown: dict[int, dict[str, float]] = {}
    for one in drawn:
        entries = Summary.FromString(b"".join(one.entries)).value
        for entry in entries:
            entry.tag = f"{one.run}: {entry.tag}" if one.run else entry.tag
        tags = [entry.tag for entry in entries]
        assert len(set(tags)) == len(tags)
        assert not set(tags) & set(shown.get(one.step, {})), "drawn twice"
        shown.setdefault(one.step, {}).update({entry.tag: entry.simple_value for entry in entries})
    return shown


def names_of_sdxl(num_layers: int = 880) -> list[str]:
    """As many layers as SDXL has, with names as long."""
    parts = ("norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "norm3", "ff.net.0.proj", "ff.net.2")
    blocks = [f"{way}_blocks.{i}" for way in ("down", "up") for i in range(3)] + ["mid_block"]
    per_block = -(-num_layers // len(blocks))
    names = [
        f"{block}.attentions.{i // 80}.transformer_blocks.{i // 8 % 10}.{parts[i % 8]}"
        for block in blocks
        for i in range(per_block)
    ]
    return names[:num_layers]


@pytest.mark.parametrize("bad", [0, 3], ids=["healthy", "all in alarm"])
def test_event_files_stay_below_20_mb_for_a_thousand_steps(bad: int) -> None:
    """880 layers in every record. Steady state is reached after the first credit, so 300 records show it."""
    names = names_of_sdxl()
    layers = {name: layer(bad=bad) for name in names}
    selection, sizes = Selection(), []
    for step in range(1, 301):
        sizes.append(sum(drawn.size for drawn in selection.take(record(step, layers))))
    dump = max(sizes)
    assert 300_000 < dump < 1_000_000
    late = sum(sizes[200:])
    last = sum(drawn.size for drawn in selection.finish())
    assert sum(sizes[:200]) + 8 * late + dump + last + PICTURES <= 20e6


@pytest.mark.parametrize("ending", ["sessions of any number", "one session"])
@pytest.mark.parametrize("every", [1, 7])
def test_the_bytes_of_a_run_of_any_length_are_bounded(monkeypatch: pytest.MonkeyPatch, ending: str, every: int) -> None:
    """A small budget, thousands of records of a few layers, in alarm, odd and judged at times: the sum of all that is
    drawn stays below the sum of the budgets, and something is drawn until the end."""
    sizes = {"credit": 4_000, "total": 20_000, "spread": 200, "debt": 2_000}
    for name in ("NUMBERS", "JUDGED", "DETAILS"):
        monkeypatch.setattr(board_selection, name, sizes)
    selection, spent, last_drawn = Selection(), 0, 0
    for step in range(1, 6_001):
        own = record(step, few(conv_in=layer(bad=step % 3))) if step % every == 0 else {"step": step, "loss": 1.0}
        records = [own | {"skipped": step % 5 == 0}, {"kind": "validation", "step": step, "loss": 1.0, "r2": 0.5}]
        if ending != "one session" and step % 100 == 0:
            records.append({"kind": "header"})
        drawn = [part for one in records for part in selection.take(one)]
        spent += sum(part.size for part in drawn)
        last_drawn = step if drawn else last_drawn
        assert spent <= 3 * (4_000 + 20_000 + 2_000) + step  # an event's own bytes where a dump joins no other
    assert last_drawn > 5_000 and spent > 30_000


PICTURES = 7e6  # tests/views/tensorboard/test_heat_maps.py


def test_every_step_of_a_small_model_is_drawn() -> None:
    layers = {f"blocks.{i}": layer() for i in range(12)}
    selection = Selection()
    shown = values([drawn for step in range(1, 501) for drawn in selection.take(record(step, layers))])
    assert len(shown) == 500
    assert all("12 blocks.11/gradient_norm/blocks.11" in tags for tags in shown.values())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one dump of `few()` at the beginning, and then for one in some ten records."""
    sizes = {"credit": 20_000, "total": 2_000_000, "spread": 1_000, "debt": 20_000}
    monkeypatch.setattr(board_selection, "DETAILS", sizes)


def few(**changed: dict[str, Any]) -> dict[str, Any]:
    names = ("conv_in", "blocks.0.a", "blocks.0.b", *(f"blocks.1.{i}" for i in range(40)), "blocks.1.a")
    return {name: layer() for name in names} | changed


@pytest.mark.usefixtures("narrow")
def test_between_dumps_the_run_the_blocks_and_layers_in_alarm_are_drawn() -> None:
    selection = Selection()
    first = values(selection.take(record(1, few())))[1]
    assert "02 blocks.0/gradient_norm/b" in first
    for step in range(2, 4):
        shown = values(selection.take(record(step, few())))[step]
    assert "train/loss" in shown and "02 blocks.0/block_update_ratio/median" in shown
    assert not any("/gradient_norm/" in tag for tag in shown)
    changed = {"blocks.0.b": layer(bad=1), "blocks.1.a": layer(headroom=2.9), "conv_in": layer(headroom=math.nan)}
    shown = values(selection.take(record(4, few(**changed))))[4]
    assert {tag for tag in shown if "/activation_norm/" in tag} == {
        "01 conv_in/activation_norm/conv_in",
        "02 blocks.0/activation_norm/b",
        "03 blocks.1/activation_norm/a",
    }
    assert shown["02 blocks.0/nonfinite/b"] == 2  # activation and gradient
    later = [step for step in range(5, 60) if "/gradient_norm/" in str(values(selection.take(record(step, few()))))]
    assert later, "never dumped again"


@pytest.mark.usefixtures("narrow")
def test_the_last_step_is_dumped_once_when_a_session_ends() -> None:
    """Layers in alarm were drawn already; a `header` begins the next session."""
    selection = Selection()
    drawn = [d for step in (1, 2, 3) for d in selection.take(record(step, few()))]
    drawn += selection.take(record(4, few(conv_in=layer(bad=1))))
    drawn += selection.take({"kind": "validation", "step": 4, "loss": 1.0})
    drawn += selection.take({"kind": "header", "stage": "train"})
    assert all(f"/gradient_norm/{name}" in str(values(drawn)[4]) for name in ("conv_in", "a", "b"))
    assert selection.finish() == []


@pytest.mark.usefixtures("narrow")
def test_a_resumed_run_draws_what_a_whole_one_does() -> None:
    """The bucket, the numbers of the blocks and the dumps go on where they were: the records alone decide."""
    first = [record(step, few()) for step in range(1, 31)]
    second = [record(step, few(late=layer())) for step in range(31, 61)]
    header = {"kind": "header"}
    whole = Selection()
    wanted = [d for r in (header, *first, header, *second) for d in whole.take(r)] + whole.finish()

    one = Selection()
    seen = [d for r in (header, *first) for d in one.take(r)] + one.finish()
    resumed = Selection()
    for past in (header, *first):
        resumed.take(past)
    resumed.finish()
    seen += [d for r in (header, *second) for d in resumed.take(r)] + resumed.finish()
    assert values(seen) == values(wanted)
    assert resumed.blocks.groups == ("01 conv_in", "02 blocks.0", "03 blocks.1", "04 late")


def test_numbers_are_what_protobuf_writes() -> None:
    """Long tags need two bytes for their length; NaN, Inf and what float32 cannot hold survive."""
    name = "blocks.0." + "ü" * 150
    shown = values(Selection().take(record(1, {name: layer(math.nan)}) | {"huge": -1e300, "inf": math.inf}))[1]
    assert math.isnan(shown[f"01 blocks.0/activation_norm/{'ü' * 150}"])
    assert shown["train/huge"] == pytest.approx(-3.4028235e38) and shown["train/inf"] == math.inf


def test_a_block_shows_the_spread_of_its_parameters() -> None:
    """NaN is the largest: a block with one is not healthy. What has no value does not count."""
    rows = [(0.1, 1.0), (0.3, math.nan), (0.2, None), (None, None)]
    parameters = {f"b.0.p{i}": {"gradient_norm": g, "update_ratio": u} for i, (g, u) in enumerate(rows)}
    shown = values(Selection().take({"step": 1, "parameters": parameters}))[1]
    assert shown["01 b.0/block_parameter_gradient_norm/median"] == pytest.approx(0.2)
    assert shown["01 b.0/block_parameter_gradient_norm/min"] == pytest.approx(0.1)
    assert shown["01 b.0/block_parameter_gradient_norm/max"] == pytest.approx(0.3)
    assert shown["01 b.0/block_update_ratio/median"] == 1.0
    assert math.isnan(shown["01 b.0/block_update_ratio/max"])


def test_chosen_layers_are_drawn_in_full() -> None:
    """Every statistic of both parts at every step, and not twice where there is a dump."""
    selection = Selection(lambda name: name.startswith("blocks.0.b"))
    for step in (1, 2):
        shown = values(selection.take(record(step, few())))[step]
        assert {
            "02 blocks.0/activation_mean/b",
            "02 blocks.0/gradient_std/b",
            "02 blocks.0/update_ratio/b.weight",
        } <= set(shown)
        assert "02 blocks.0/activation_mean/a" not in shown


def lines_of(drawn: list[Drawn]) -> set[tuple[str, str]]:
    """(sub-run, tag) of the charts of the run."""
    tags = {(one.run, tag.removeprefix(f"{one.run}: ")) for one in drawn for tag in values([one])[one.step]}
    return {(run, tag) for run, tag in tags if tag.startswith("00 ")}


def test_charts_of_a_foreign_loop() -> None:
    """Every line is a sub-run, for a colour of its own; all lines of a chart have one tag."""
    step = {"step": 1, "loss": 1.0, "grad_norm": 2.0, "loss_by_t": {"0.25-0.50": 1.0, "0.50-0.75": 2.0}}
    assert lines_of(Selection().take(step)) == {
        ("loss/training", "00 run/loss"),
        ("gradient norm/before clipping", "00 run/gradient norm"),
        ("loss by t/t 0.25-0.50", "00 run/loss by t"),
        ("loss by t/t 0.50-0.75", "00 run/loss by t"),
    }
    judged = {"kind": "validation", "step": 1, "loss": 1.0, "loss_t0.25": 2.0, "response_theta": 0.1}
    assert lines_of(Selection().take(judged)) == {
        ("loss/held out", "00 run/loss"),
        ("held-out loss by t/t 0.25", "00 validation/held-out loss by t"),
        ("answer to each condition/theta", "00 validation/answer to each condition"),
    }


def test_names_of_lines_lead_nowhere_else() -> None:
    """They come from a file that may be a stranger's: each is one folder inside another, and there are not many."""
    lines = tuple(ChartLine(label, "train", "loss") for label in ("../../a", "/b", "..", "", "c\0d", "x" * 300))
    chart = RunChart("00 run", "../up/..", lines)
    runs = {run for run, _ in lines_of(Selection(charts=[chart]).take({"step": 1, "loss": 1.0}))}
    assert all(len(run.split("/")) == 2 and not set(run.split("/")) & {"", ".", ".."} for run in runs)
    assert not any("\0" in run or run.startswith("/") or len(run) > 150 for run in runs)
    many = RunChart("00 run", "many", (ChartLine("", "train", "loss_by_t.*"), ChartLine("one", "train", "loss")))
    record_of_many = {"step": 1, "loss_by_t": {str(i): 1.0 for i in range(1_000)}}
    assert len(lines_of(Selection(charts=[many]).take(record_of_many))) <= 64


def test_what_says_nothing_is_not_drawn() -> None:
    """Until it does: from then on every point is."""
    selection = Selection()
    first = values(selection.take(record(1, {"a": layer(headroom=120.0)})))[1]
    assert not [tag for tag in first if any(word in tag for word in ("nonfinite", "headroom", "fraction_zero"))]
    assert not selection.shows_headroom
    second = values(selection.take(record(2, {"a": layer(bad=1, headroom=12.0)})))[2]
    third = values(selection.take(record(3, {"a": layer(headroom=120.0)})))[3]
    assert {"01 a/nonfinite/a", "01 a/headroom_bits/a"} <= set(second) & set(third)
    assert selection.shows_headroom


def test_every_layer_is_in_one_chart_of_each_kind() -> None:
    """TensorBoard matches a Multiline's expressions from the beginning of a tag; a Margin wants three tags."""
    selection = Selection()
    names = ("conv_in", "a.1.x", "a.10.x", "a.b+c.x")
    shown = values(selection.take(record(1, {name: layer() for name in names})))[1]
    charts = layout(selection.blocks, RUN_CHARTS)
    assert charts["00 run"]["loss"] == ["Multiline", [r"^00\ run/loss$"]]
    assert list(charts)[:2] == ["00 run", "00 validation"]
    assert not {"00 run", "headroom of each layer, bits to overflow"} & set(
        layout(selection.blocks, (), shows_headroom=False)
    )

    def drawn_by(category: str) -> Iterator[tuple[str, list[str]]]:
        for title, (kind, patterns) in charts[category].items():
            if kind == "Multiline":
                yield title, [tag for tag in shown if any(re.match(pattern, tag) for pattern in patterns)]
            else:
                assert len(patterns) == 3
                yield title, [tag for tag in patterns if tag in shown]

    for category, key in (("gradient norm of", "gradient_norm"), ("headroom", "headroom_bits")):
        title = next(name for name in charts if name.startswith(category))
        matched = [tag for _, tags in drawn_by(title) for tag in tags]
        assert sorted(matched) == sorted(tag for tag in shown if f"/{key}/" in tag)
    for category in charts:
        if "parameters" in category:
            assert all(len(tags) == 3 for _, tags in drawn_by(category)), category
