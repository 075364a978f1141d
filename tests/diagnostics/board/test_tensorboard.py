"""The view: tags as documented, read back with TensorBoard's own reader."""

import math
import struct
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from diagnostics import LayerStatistics, ParameterStatistics, RecordWriter, read_records
from diagnostics.board.tags import block_of, within_block
from diagnostics.board.tensorboard import TensorBoardView, rebuild
from diagnostics.modules import leaf_modules
from diagnostics.records.lines import rounded
from diagnostics.statistics.parameters import histogram


def read(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    reader.Reload()
    return reader


def scalars_of(folder: Path) -> dict[str, list[tuple[int, str]]]:
    reader = read(folder)
    return {tag: [(e.step, repr(e.value)) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def write(folder: Path, *records: dict, purge_step: int | None = None) -> None:
    view = TensorBoardView(folder, purge_step=purge_step)
    for record in records:
        view.write(record)
    view.close()


def observed_record(step: int = 1) -> tuple[nn.Module, dict]:
    torch.manual_seed(step)
    model = nn.Module()
    model.conv_in = nn.Linear(2, 4)
    model.down_blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(2)])
    odd = nn.ModuleDict({"name with space": nn.Linear(4, 1), "ü:[1]/x": nn.Identity()})
    model.odd = odd
    layers, parameters = LayerStatistics(model), ParameterStatistics(model)
    with layers.recording():
        x = model.conv_in(torch.randn(3, 2))
        for block in model.down_blocks:
            x = block(x)
        odd["ü:[1]/x"](odd["name with space"](x)).square().mean().backward()
    parameters.before_step()
    parameters.after_step()
    return model, {
        "kind": "train",
        "step": step,
        "loss": 0.5,
        "skipped": False,
        "note": "text",
        "missing": None,
        "layers": {n: {k: s.to_dict() for k, s in kinds.items()} for n, kinds in layers.collect().items()},
        "parameters": {n: dict(vars(p)) for n, p in parameters.collect().items()},
        "histograms": {"histogram_weight/conv_in.weight": dict(vars(histogram(model.conv_in.weight)))},
    }


def test_tags_are_exactly_the_documented(tmp_path):
    """Blocks are numbered as they ran; a layer that no gradient reaches has one of 0."""
    model, record = observed_record()
    record["loss_by_t"] = {"0.25-0.50": 0.5}
    write(tmp_path, record)
    reader = read(tmp_path)
    groups = {"conv_in": "01 conv_in", "down_blocks.0": "02 down_blocks.0", "down_blocks.1": "03 down_blocks.1"}
    groups["odd"] = "04 odd"
    expected = {"train/loss", "train/loss_by_t/0.25-0.50"}
    for name in leaf_modules(model):
        for key in ("activation_norm", "gradient_norm", "max_abs"):
            expected.add(f"{groups[block_of(name)]}/{key}/{within_block(name)}")
        if any(parts["fraction_zero"] > 0 for part, parts in record["layers"][name].items() if part == "activation"):
            expected.add(f"{groups[block_of(name)]}/fraction_zero/{within_block(name)}")
    for name, _ in model.named_parameters():
        for key in ("parameter_gradient_norm", "update_ratio"):
            expected.add(f"{groups[block_of(name)]}/{key}/{within_block(name)}")
            expected |= {f"{groups[block_of(name)]}/block_{key}/{edge}" for edge in ("median", "min", "max")}
    assert set(reader.Tags()["scalars"]) == expected
    assert {"03 down_blocks.1/activation_norm/0", "04 odd/gradient_norm/ü:[1]/x"} < expected
    assert reader.Tags()["histograms"] == ["histogram_weight/conv_in.weight"]
    values = record["layers"]["conv_in"]["activation"]
    seen = reader.Scalars("01 conv_in/activation_norm/conv_in")[0]
    assert (seen.step, seen.value) == (1, single(rounded(values["norm"])))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("down_blocks.1.resnets.0.conv1", "down_blocks.1"),
        ("mid_block.attentions.0", "mid_block"),
        ("conv_in", "conv_in"),
        ("3", "3"),
        ("0.1.weight", "0.1"),
    ],
)
def test_blocks(name: str, block: str):
    assert block_of(name) == block


def test_nonfinite_and_enormous_values(tmp_path):
    write(tmp_path, {"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300, "e": -(10**60)})
    reader = read(tmp_path)
    seen = {tag: reader.Scalars(f"train/{tag}")[0].value for tag in "abcde"}
    assert math.isnan(seen.pop("a"))
    assert seen == {"b": math.inf, "c": -math.inf, "d": single(3.4028234e38), "e": -single(3.4028234e38)}


def test_resume_hides_what_was_written_after_the_checkpoint(tmp_path):
    write(tmp_path, *({"step": n, "loss": float(n)} for n in range(1, 7)))
    write(tmp_path, {"step": 4, "loss": 40.0}, {"step": 5, "loss": 50.0}, purge_step=4)
    events = read(tmp_path).Scalars("train/loss")
    assert [(e.step, e.value) for e in events] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(100),
        torch.tensor([math.nan, 1.0, 2.0, math.inf]),
        torch.full((4,), 3.0),
        torch.tensor([-3.4e38, 0.0, 3.4e38]),
        torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64),
        torch.tensor([0.0, 1e-45]),
        torch.full((2,), math.nan),
        torch.zeros(0),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning:tensorboard")  # where it reads 1.7e308
def test_histograms_of_any_values_are_read_back(tmp_path, x: torch.Tensor):
    content = histogram(x)
    write(tmp_path, {"step": 3, "histograms": {"weights": dict(vars(content))}})
    reader = read(tmp_path)
    num_bad = content.num_nan + content.num_inf
    assert ("nonfinite/weights" in reader.Tags()["scalars"]) == (num_bad > 0)
    assert not num_bad or reader.Scalars("nonfinite/weights")[0].value == num_bad
    if not content.counts:
        assert reader.Tags()["histograms"] == []
        return
    (event,) = reader.Histograms("weights")
    seen = event.histogram_value
    assert (event.step, seen.num, list(seen.bucket)) == (3, sum(content.counts), content.counts)
    assert (seen.min, seen.max) == (content.low, content.high)
    limits = list(seen.bucket_limit)
    assert limits == sorted(limits) and limits[-1] == pytest.approx(content.high)
    assert all(math.isfinite(limit) for limit in limits)


def test_rebuilt_from_the_lines_on_disk(tmp_path):
    """The view is a function of metrics.jsonl: the same tags, steps and values."""
    path, live, again = tmp_path / "metrics.jsonl", tmp_path / "live", tmp_path / "again"
    records = [observed_record(step)[1] for step in (1, 2)]
    records[1]["loss"] = math.nan
    writer, view = RecordWriter(path), TensorBoardView(live)
    for record in records:
        writer.write(record)
        view.write(record)
    incident = {"kind": "incident", "step": 2, "finding": {"place": "conv_in"}, "sample_ids": ["a"]}
    writer.write(incident)
    writer.write({"note": "no step, nothing to draw"})
    writer.close()
    view.close()
    rebuild(read_records(path), again)
    assert scalars_of(again) == scalars_of(live)
    assert len(scalars_of(live)["train/loss"]) == 2
    assert read(again).Tags()["histograms"] == read(live).Tags()["histograms"]


def test_rebuilding_into_a_view_is_refused(tmp_path):
    write(tmp_path, {"step": 1, "loss": 1.0})
    with pytest.raises(FileExistsError, match="holds a TensorBoard view already"):
        rebuild([{"step": 1, "loss": 1.0}], tmp_path)


def test_images(tmp_path):
    view = TensorBoardView(tmp_path)
    view.add_image("samples/0", torch.rand(3, 4, 5), 7)
    view.flush()
    view.close()
    (event,) = read(tmp_path).Images("samples/0")
    assert (event.step, event.height, event.width) == (7, 4, 5)
