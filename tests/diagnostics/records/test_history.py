"""Curves and tables over steps, from records as a run writes them."""

import math
from pathlib import Path

import pytest
import torch

from diagnostics.records.history import History
from diagnostics.records.kinds import evaluation
from diagnostics.records.lines import RecordWriter
from diagnostics.statistics.layers import LayerStatistics


def layer(norm: float) -> dict[str, dict[str, float]]:
    return {"activation": {"norm": norm, "headroom_bits": math.inf}}


def test_a_table_keeps_the_order_of_execution_and_what_is_absent() -> None:
    """`b` does not run in step 1, `late` only from step 3 on; NaN that was measured is not absence."""
    history = History(
        [
            {"kind": "header", "stage": "train", "num_samples": 7},
            {"kind": "train", "step": 1, "layers": {"a": layer(1.0), "c": layer(3.0)}},
            {"kind": "train", "step": 2, "loss": 0.5},
            {"kind": "train", "step": 3, "layers": {"a": layer(math.nan), "b": layer(2.0), "c": layer(4.0)}},
            {"kind": "train", "step": 5, "layers": {"c": layer(5.0), "late": layer(6.0)}},
        ]
    )
    table = history.layers("norm")
    assert table.names == ("a", "b", "c", "late")
    assert table.steps == (1, 3, 5)
    assert table.present.tolist() == [
        [True, True, False],
        [False, True, False],
        [True, True, True],
        [False, False, True],
    ]
    assert list(table.curve("c")) == [(1, 3.0), (3, 4.0), (5, 5.0)]
    assert math.isnan(table.curve("a").values[1]) and table.curve("a").steps == (1, 3)
    assert history.header["num_samples"] == 7


def test_an_overfit_that_failed_in_its_first_step_is_one() -> None:
    history = History([{"kind": "header", "stage": "overfit", "num_samples": 16}, {"kind": "incident", "step": 0}])
    assert (history.kind, history.header["num_samples"]) == ("overfit", 16)
    assert History([{"kind": "header", "num_samples": 16}]).kind == "train"


def test_records_say_themselves_what_is_an_evaluation() -> None:
    """Kinds of any name: announced by a header, shown by what only a step has, or judged."""
    history = History(
        [
            {"kind": "header", "stage": "distil"},
            {"kind": "held-out", "step": 0, "loss": 1.0},
            {"kind": "distil", "step": 1, "loss": 1.0},
            {"kind": "warm-up", "step": 2, "loss": 1.0, "grad_norm": 2.0},
            {"step": 3, "loss": 1.0},
            {"kind": "health", "step": 3, "findings": []},
            {"kind": "stage", "step": 3, "stage": "distil", "passed": True},
        ]
    )
    assert history.evaluations == ("held-out",)
    assert history.kind == "train" and [record["step"] for record in history.records()] == [3]
    assert History([{"kind": "distil", "step": 1}], kind="distil").evaluations == ()


def test_an_evaluation_has_the_numbers_of_its_task() -> None:
    record = evaluation("held-out", 5, {"loss": 0.5, "soft_iou": 0.75})
    assert list(record.items()) == [("kind", "held-out"), ("step", 5), ("loss", 0.5), ("soft_iou", 0.75)]
    with pytest.raises(ValueError, match="no number called step"):
        evaluation("held-out", 5, {"step": 1.0})
    with pytest.raises(ValueError, match="no stage"):
        evaluation("stage", 5, {"loss": 0.5})


def test_curves_of_a_resumed_run(tmp_path: Path) -> None:
    """Steps that are written again count once; numbers inside a dictionary have a curve, flags have none."""
    writer = RecordWriter(tmp_path / "metrics.jsonl")
    for step, loss in ((1, 1.0), (2, math.inf), (2, 0.5)):
        record = {"kind": "train", "step": step, "loss": loss, "skipped": False, "loss_by_t": {"0.25-0.50": loss / 2}}
        writer.write(record)
    writer.write({"kind": "validation", "step": 2, "loss": 9.0})
    writer.close()
    history = History.read(tmp_path / "metrics.jsonl")
    assert list(history.curve("loss")) == [(1, 1.0), (2, 0.5)]
    assert list(history.curve("loss_by_t.0.25-0.50")) == [(1, 0.5), (2, 0.25)]
    assert history.curve("loss", "validation").last == 9.0
    assert len(history.curve("skipped")) == 0 and history.curve("skipped").last is None
    assert history.last_step == 2


def test_unknown_statistics_are_named() -> None:
    with pytest.raises(ValueError, match="statistics norm, mean"):
        History([]).layers("nrm")
    with pytest.raises(ValueError, match="gradient_norm and update_ratio"):
        History([]).parameters("norm")


def test_headroom_is_that_of_each_dtype() -> None:
    """log2(65504 / 4) in float16, of a module that returns two dtypes the lesser of both; none of it used: inf."""

    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, (x * 2).half()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.nothing = Two(), torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.two(x)
            return self.nothing(-(a + b))

    model = Model()
    statistics = LayerStatistics(model)
    with statistics.recording():
        model(torch.tensor([1.0, 2.0]))
    layers = statistics.collect()
    assert layers["two"]["activation"].headroom_bits == pytest.approx(math.log2(65504 / 4))
    assert layers["nothing"]["activation"].headroom_bits == math.inf


def test_a_stage_that_is_no_text_is_read_as_one() -> None:
    assert History([{"kind": "header", "stage": ["overfit"]}]).records() == []
