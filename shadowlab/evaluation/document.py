"""evaluation.json and its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowlab.evaluation.gallery import Shown
from shadowlab.evaluation.statistics import REPLICATES
from shadowlab.evaluation.subject import Subject
from shadowlab.evaluation.summary import Summaries
from shadowlab.plain_text import counted
from shadowlab.views.page import JudgedSample, SampleCell, write_evaluation_page

_WEIGHTS = {
    "ema": "the weights are the running average of training (EMA)",
    "raw": "the weights are those of the last step, not their running average (EMA)",
    "exported": "the weights are those that were exported",
}


def document_of(subject: Subject, summaries: Summaries, remark: str) -> dict[str, Any]:
    """What evaluation.json holds. remark: on what the model was trained on."""
    published: dict[str, dict[str, dict[str, float]]] = {}
    for steps in subject.steps:
        for track, figures in subject.evaluation.published(subject.data, steps).items():
            name = f"published, {steps} step{'' if steps == 1 else 's'}"
            published.setdefault(track, {})[name] = figures
    return {
        "task": subject.task.name,
        "data": subject.where,
        "fingerprint": subject.data.fingerprint(),
        "weights": subject.weights,
        "tracks": {track.name: track.to_json() for track in summaries.tracks},
        "control": summaries.control,
        "published": published,
        "notes": _notes(subject, remark),
    }


def _notes(subject: Subject, remark: str) -> list[str]:
    notes = [f"judged: {subject.name}, at {subject.image_size} pixels"]
    if subject.weights in _WEIGHTS:
        notes.append(_WEIGHTS[subject.weights])
    notes += [remark] if remark else []
    notes += subject.evaluation.remarks(subject.data)
    notes += subject.evaluation.notes
    notes += subject.data.notices
    if subject.num_seeds:
        notes.append(
            f"mean: over samples and {counted(subject.num_seeds, 'seed')}; std: over seeds, of the mean over samples"
        )
    notes.append(
        f"low, high: 95 % of {REPLICATES} bootstrap means over samples (drawn by a fixed seed); samples of one object "
        "are alike, so another set of objects may differ by more"
    )
    return notes


def write_page(
    file: Path, subject: Subject, document: dict[str, Any], summaries: Summaries, shown: Sequence[Shown]
) -> None:
    """evaluation.html. Raises UserError where it cannot be written."""
    samples = [
        JudgedSample(
            one.picked.track,
            one.picked.word,
            one.sample,
            one.conditions,
            one.picked.value,
            tuple(SampleCell(cell.caption, cell.png, cell.width, cell.height) for cell in one.cells),
        )
        for one in shown
    ]
    write_evaluation_page(
        file,
        name=subject.name,
        document=document,
        metrics=subject.evaluation.metrics,
        ranking=subject.evaluation.ranking,
        ranked=subject.ranked.name,
        drawn=subject.evaluation.drawn,
        methods=[method.name for method in subject.methods],
        steps=subject.steps,
        control_texts=subject.evaluation.control_texts,
        facts=_facts(subject),
        samples=samples,
    )


def _facts(subject: Subject) -> list[tuple[str, str]]:
    found = [("Data", subject.where), ("Samples", f"{len(subject.data):,}"), ("Pictures", f"{subject.image_size} px")]
    if subject.model is not None:
        found += [
            ("Weights", subject.weights.upper() if subject.weights == "ema" else subject.weights),
            ("Steps", ", ".join(map(str, subject.steps))),
            ("Seeds", str(subject.num_seeds)),
        ]
    return found
