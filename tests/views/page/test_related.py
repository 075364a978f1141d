"""Links between the folders of the stages of one model, wherever they lie; and to nowhere else."""

import json
import os
from pathlib import Path

import pytest

from shadowlab.views.page.page import write_report
from shadowlab.views.page.related import Related, related_stages
from tests.views.page.run_folders import make_run, step


def trained(root: Path, *, inside: bool) -> dict[str, Path]:
    """A training and its proofs, in its folder or next to it, noted as relative to the folder above `runs`."""
    runs = root / "runs"
    folders = {"train": make_run(runs / "mine", [step(1)])}
    notes = {}
    for stage in ("check-forward", "overfit"):
        name = f"mine/{stage}" if inside else f"mine-{stage}"
        folders[stage] = make_run(runs / name)
        notes[stage] = f"runs/{name}"
    (folders["train"] / "required-stages.json").write_text(json.dumps(notes))
    return folders


def chain(run: Path) -> list[Related]:
    return related_stages(run, run / "reports" / "report.html")


@pytest.mark.parametrize("inside", [False, True])
def test_every_stage_links_to_the_others(tmp_path: Path, inside: bool) -> None:
    folders = trained(tmp_path, inside=inside)
    for stage, run in folders.items():
        found = chain(run)
        assert [one.stage for one in found] == ["check-forward", "overfit", "train"], stage
        assert [one.stage for one in found if one.is_this] == [stage]
        for one in found:
            target = run / "reports" / one.address
            assert one.is_this or os.path.realpath(target) == os.path.realpath(folders[one.stage])
    write_report(folders["overfit"])
    [overfit] = [one for one in chain(folders["train"]) if one.stage == "overfit"]
    linked = folders["train"] / "reports" / overfit.address
    assert overfit.has_page and os.path.realpath(linked) == os.path.realpath(folders["overfit"] / "reports/report.html")
    assert f'href="{overfit.address}"' in write_report(folders["train"]).file.read_text()


def test_a_note_leads_nowhere_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "mine", [step(1)])
    secret = tmp_path / "secret"
    make_run(secret)
    (tmp_path / "runs" / "link").symlink_to(secret)
    for text in (
        "../secret",
        str(secret),
        "/etc",
        "javascript:alert(1)",
        "runs/link",
        "runs/mine/../../secret",
        "",
        ".",
    ):
        (run / "required-stages.json").write_text(json.dumps({"overfit": text}))
        assert chain(run) == [], text
    for content in ("[", "[1]", '{"overfit": 3}', "[" * 100_000):
        (run / "required-stages.json").write_text(content)
        assert chain(run) == []
    assert chain(make_run(tmp_path / "elsewhere" / "alone")) == []


def test_a_name_is_quoted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "mine", [step(1)])
    make_run(tmp_path / "runs" / 'a "b#c')
    (run / "required-stages.json").write_text(json.dumps({"overfit": 'runs/a "b#c'}))
    assert [one.address for one in chain(run)] == ["../../a%20%22b%23c/", ""]
