"""What of a record is drawn: bytes are bounded, nothing that matters is missed, the records alone decide."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tensorboard.compat.proto.summary_pb2 import Summary

from diagnostics.board import selection as board_selection
from diagnostics.board.layout import RUN_CHARTS, layout
from diagnostics.board.selection import CAPACITY, GRANT, Drawn, Selection


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
    """880 layers in every record. Steady state is reached after the first credit, so 200 records show it."""
    names = names_of_sdxl()
    layers = {name: layer(bad=bad) for name in names}
    selection, sizes = Selection(), []
    for step in range(1, 201):
        sizes.append(sum(drawn.size for drawn in selection.take(record(step, layers))))
    dump = max(sizes)
    assert 400_000 < dump < 1_000_000
    assert sum(sizes) <= CAPACITY + len(sizes) * GRANT
    late = sum(sizes[100:])
    assert late <= 100 * GRANT + dump
    last = sum(drawn.size for drawn in selection.finish())
    assert CAPACITY + 1000 * GRANT + last + PICTURES <= 20e6


PICTURES = 7e6  # tests/views/test_heat_maps.py


def test_every_step_of_a_small_model_is_drawn() -> None:
    layers = {f"blocks.{i}": layer() for i in range(12)}
    selection = Selection()
    shown = values([drawn for step in range(1, 501) for drawn in selection.take(record(step, layers))])
    assert len(shown) == 500
    assert all("12 blocks.11/gradient_norm/blocks.11" in tags for tags in shown.values())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one dump of `few()` at the beginning, and then for one in some ten records."""
    monkeypatch.setattr(board_selection, "CAPACITY", 20_000)
    monkeypatch.setattr(board_selection, "GRANT", 2_000)


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
    assert {tag for tag in shown if "/nonfinite/" in tag} == {
        "01 conv_in/nonfinite/conv_in",
        "02 blocks.0/nonfinite/b",
        "03 blocks.1/nonfinite/a",
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


def test_charts_of_a_foreign_loop() -> None:
    def drawn(title: str, tag: str) -> bool:
        return any(re.match(pattern, tag) for pattern in RUN_CHARTS[title])

    assert drawn("loss", "train/loss") and not drawn("loss", "train/loss_by_t/0.25-0.50")
    assert drawn("held-out loss by t", "validation/loss_t0.25") and not drawn("held-out loss by t", "validation/loss")


def test_every_layer_is_in_one_chart_of_each_kind() -> None:
    """TensorBoard matches a Multiline's expressions from the beginning of a tag; a Margin wants three tags."""
    selection = Selection()
    names = ("conv_in", "a.1.x", "a.10.x", "a.b+c.x")
    shown = values(selection.take(record(1, {name: layer() for name in names})))[1]
    charts = layout(selection.blocks, {"Loss": ["^train/loss$", "^validation/loss$"]})
    assert charts["run"] == {"Loss": ["Multiline", ["^train/loss$", "^validation/loss$"]]}
    assert "run" not in layout(selection.blocks, {})

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
