"""What an edit is judged by, what the result keeps of the input, and what a model must beat."""

from dataclasses import replace

import pytest
import torch

from shadowlab.tasks.editing import EDITS
from shadowlab.tasks.editing.baselines import BASELINES
from shadowlab.tasks.editing.evaluation import EditingEvaluation
from shadowlab.tasks.editing.metrics import METRICS, RANKING, finished, judged
from shadowlab.tasks.editing.painting import edge_agreement, edges, painted
from tests.tasks.editing.pictures import batch_of, scene

NAMES = list(EDITS)


@pytest.mark.parametrize("edit", NAMES)
@pytest.mark.parametrize("keeps", [True, False])
def test_the_truth_beats_every_baseline_in_every_metrics_own_direction(edit, keeps: bool) -> None:  # type: ignore[no-untyped-def]
    batch = batch_of(edit)
    truth = judged(edit, batch.target, batch, keep_input=keeps)
    assert list(truth) == [metric.name for metric in METRICS[edit]]
    for name, guess in BASELINES[edit].items():
        found = judged(edit, guess(batch), batch, keep_input=keeps)
        for metric in METRICS[edit]:
            mine, its = truth[metric.name].mean(), found[metric.name].mean()
            assert mine >= its if metric.higher_is_better else mine <= its, (name, metric.name)
        ranked = RANKING[edit].name
        assert float(truth[ranked].mean()) != float(found[ranked].mean())


def test_a_removal_is_judged_inside_and_outside_apart() -> None:
    batch = batch_of("object-removal")
    wrong_inside = torch.where(batch.mask > 0, batch.target + 0.1, batch.target)
    wrong_outside = torch.where(batch.mask > 0, batch.target, batch.target + 0.1)
    inside = judged("object-removal", wrong_inside, batch, keep_input=False)
    outside = judged("object-removal", wrong_outside, batch, keep_input=False)
    assert inside["inside_rmse"].tolist() == pytest.approx([0.1] * 3, abs=1e-6) and not inside["outside_rmse"].any()
    assert outside["outside_rmse"].tolist() == pytest.approx([0.1] * 3, abs=1e-6) and not outside["inside_rmse"].any()
    kept = judged("object-removal", wrong_outside, batch, keep_input=True)
    assert not kept["outside_rmse"].any()
    assert torch.equal(kept["painted_outside_rmse"], outside["outside_rmse"])


def test_a_result_is_the_inputs_outside_of_the_mask_bit_for_bit() -> None:
    batch = batch_of("object-removal")
    result = finished("object-removal", torch.rand(batch.target.shape), batch)
    outside = (batch.mask == 0).expand_as(result)
    assert torch.equal(result[outside], batch.input[outside]) and not torch.equal(result, batch.input)


def test_the_mean_fill_looks_at_nothing_inside_the_mask() -> None:
    batch = batch_of("object-removal")
    other = replace(batch, input=torch.where(batch.mask > 0, torch.rand(batch.input.shape), batch.input))
    fill = BASELINES["object-removal"]["mean fill"]
    inside = (batch.mask > 0).expand_as(batch.input)
    assert torch.allclose(fill(batch)[inside], fill(other)[inside], atol=1e-6)
    assert not torch.allclose(fill(batch)[inside], batch.input[inside], atol=0.1)


def test_borders_do_not_count() -> None:
    for edit in EDITS:
        batch = batch_of(edit)
        valid = batch.valid.clone()
        valid[..., :8] = 0
        batch = replace(batch, valid=valid)
        p = batch.target.clone()
        p[..., :8] = 0.9
        for keeps in (True, False):
            same, other = (judged(edit, one, batch, keep_input=keeps) for one in (batch.target, p))
            for name, values in same.items():
                if name != "edge_agreement":  # lines begin where a border does
                    assert torch.allclose(values, other[name]), (edit, name)


def test_edges_agree_with_themselves_and_a_pixel_away() -> None:
    truth = torch.from_numpy(scene(1)).permute(2, 0, 1)[None] / 255
    counts = torch.ones(1, 1, 32, 32)
    flat = torch.full_like(truth, 0.5)
    assert float(edges(truth).sum()) > 20
    assert float(edge_agreement(truth, truth, counts)) == 1 and float(edge_agreement(flat, flat, counts)) == 1
    assert float(edge_agreement(flat, truth, counts)) == 0
    assert float(edge_agreement(truth.roll(1, -1), truth, counts)) > 0.85
    assert float(edge_agreement(truth.roll(4, -1), truth, counts)) < 0.75


def test_paintings_are_made_of_the_picture_alone() -> None:
    truth = torch.from_numpy(scene(2)).permute(2, 0, 1)[None] / 255
    flat, sketch = painted(truth, "flat"), painted(truth, "sketch")
    ground = flat[(edges(truth) == 0).expand_as(flat)]
    assert torch.allclose(ground * 3, (ground * 3).round(), atol=1e-6)
    assert sketch.unique().tolist() == pytest.approx([0.1, 1.0])
    assert torch.equal(painted(truth, "flat"), flat) and not torch.equal(painted(1 - truth, "flat"), flat)
    both = painted(torch.cat([truth, 1 - truth]), "flat")
    assert torch.equal(both[:1], flat)


def test_the_report_says_what_the_result_keeps() -> None:
    for edit in EDITS.values():
        kept, whole = (EditingEvaluation(edit, keep_input=keeps) for keeps in (True, False))
        assert any("what the model paints" in note for note in whole.notes)
        assert any(edit.keeps in note for note in kept.notes)
        assert kept.settings != whole.settings
        assert kept.ranking in {metric.name for metric in kept.metrics}
