"""The page as a file: escaping, damaged and half-written runs, the verdict line, the command."""

import fcntl
import json
import math
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from diagnostics.verdict import read_verdict
from shadowlab.runs.folder import LOCK
from shadowlab.views.page import page as page_module
from shadowlab.views.page.health_table import health_rows
from shadowlab.views.page.page import build_page, commands, facts, write_report
from shadowlab.views.page.run_view import RunView
from tests.views.page.run_folders import HOSTILE, VERDICT, add_incident, add_pictures, layers, make_run, stage, step


class Parsed(HTMLParser):
    """Elements and what could ask a network or run code."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.addresses: list[tuple[str, str]] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append((tag, value or ""))
            if name in ("aria-labelledby", "aria-describedby"):
                self.targets += (value or "").split()


def data(page: str, name: str) -> dict:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def page_of(run: Path) -> str:
    return build_page(RunView.read(run))


def report(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments])


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    """Names, verdicts, errors and files that hold markup: none of it becomes an element."""
    run = make_run(
        tmp_path / "run",
        [
            step(1, layers=layers(HOSTILE, "down.0.conv")),
            {"kind": "health", "step": 1, "findings": [{"rule": HOSTILE, "severity": HOSTILE, "evidence": HOSTILE}]},
        ],
        config=f"# </pre>{HOSTILE}\nprecision: fp32\n",
        environment={"source": HOSTILE, HOSTILE: HOSTILE, "command": ["train", "--run", HOSTILE]},
        stages={HOSTILE: stage(False, error=HOSTILE, checks=[{HOSTILE: HOSTILE, "passed": False}])},
    )
    add_incident(run)
    page = page_of(run)
    parsed = Parsed(page)
    assert parsed.elements["script"] == 3  # two of data, one that runs
    assert not {name for name in parsed.attributes if name.startswith("on") or name == "style"}
    assert {a for tag, a in parsed.addresses if tag != "a" and not a.startswith("data:")} == set()
    assert {a for tag, a in parsed.addresses if tag == "a" and not a.startswith("#")} == {
        "https://github.com/pytorch/pytorch/issues/68425"
    }
    assert data(page, "heat-data")["layers"] == [HOSTILE, "down.0.conv"]
    assert len(parsed.ids) == len(set(parsed.ids)) and set(parsed.targets) <= set(parsed.ids)
    anchors = {a[1:] for tag, a in parsed.addresses if tag == "a" and a.startswith("#")}
    assert anchors <= set(parsed.ids)


def test_half_a_surrogate_pair_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(1)], stages={"train": stage(False, error="sample \ud800 is bad")})
    assert "sample ? is bad" in write_report(run).file.read_text(encoding="utf-8")


def test_an_incident_is_reported_in_full(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(6)])
    add_incident(run)
    (run / "incidents" / "step-00000007" / "repro.py").write_text("")
    (run / "incidents" / "step-00000007" / "operator.pt").write_text("")
    page = page_of(run)
    for text in (
        "inf was born in exp, phase forward of step 7",
        "the result is beyond the largest finite value of this dtype",
        "overflow: beyond the largest finite number",
        "at [1, 2] of [4, 8]",
        "below the smallest normal number",
        "float16: max 65504, smallest normal 6.10352e-05, eps 0.000976562",
        "(3 more)",
        f"shadowlab why {run}/incidents/step-00000007",
        f"python {run}/incidents/step-00000007/repro.py",
    ):
        assert text in page, text
    assert page.count("not finite") == 1  # -inf came as a word


@pytest.mark.parametrize("without", ["shape", "index", "operands", "dtype", "limits"])
def test_the_page_and_the_terminal_say_the_same_of_a_witness(tmp_path: Path, without: str) -> None:
    witness = {key: value for key, value in VERDICT["witness"].items() if key != without} | {"issued_at": "step.py:9"}
    verdict = read_verdict(VERDICT | {"witness": witness})
    assert verdict is not None
    run = make_run(tmp_path / "run", [step(6)])
    add_incident(run, verdict.to_json())
    page = page_of(run)
    reported = dict(verdict.details())
    assert all(reported.get(label, "") in page for label in ("dtype", "issued at"))
    assert verdict.operands_where in page and verdict.operands_where in reported["operands"]
    assert ("at [1, 2]" in page) == (without != "index")


def test_several_incidents_each_have_their_chain(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for number in (3, 4):
        add_incident(run, {**VERDICT, "step": number - 1}, f"step-{number:08d}")
    parsed = Parsed(page_of(run))
    assert parsed.elements["article"] + parsed.elements["ol"] == 1 + 2
    assert len(parsed.ids) == len(set(parsed.ids)) and set(parsed.targets) <= set(parsed.ids)


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    """Everything that a full disk or a kill can damage at once."""
    run = make_run(tmp_path / "run", [step(1), step(2)], environment={"source": "tiny"})
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{damaged}\n" + json.dumps(step(3)) + "\n")
    (run / "stages.json").write_text("[1")
    (run / "environment.json").write_bytes(b"\xff\xfe")
    (add_incident(run) / "verdict.json").write_text('{"phase": 3}')
    add_pictures(run, 1)
    (run / "samples" / "step-00000001.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    written = write_report(run)
    page = written.file.read_text()
    for words in (
        "metrics.jsonl:3",
        "stages.json: cannot be read",
        "environment.json: cannot be read",
        "not a verdict",
    ):
        assert words in page
        assert any(words in problem for problem in written.problems), words
    assert "step-00000001.png: no picture" in page
    assert data(page, "curve-data")["loss"]["series"][0]["steps"] == [1, 2]


@pytest.mark.parametrize(
    "name", ["step-\u00b2", "step-\u0663", "step-", "step-x", "step--1", "step-1-2", f"step-{'9' * 200}"]
)
def test_a_folder_that_only_looks_like_an_incident_is_shown_as_one_that_cannot_be_read(
    tmp_path: Path, name: str
) -> None:
    run = make_run(tmp_path / "run", [step(1)])
    (run / "incidents" / name).mkdir(parents=True)
    [story] = RunView.read(run).incidents
    assert story.headline == f"{name}: the verdict cannot be read"
    assert name in page_of(run)


@pytest.mark.usefixtures("alarm")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(1)])
    for name in ("stages.json", "config.yaml"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert [problem.rpartition("/")[2] for problem in write_report(run).problems] == [
        "config.yaml: cannot be read (a pipe, not a file); it is left out",
        "stages.json: cannot be read (a pipe, not a file); it is left out",
    ]


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_lost_verdict_is_taken_from_the_records(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "run", [{"kind": "incident", "step": 7, "verdict": VERDICT, "state": "kept"}])
    if damage == "damaged":
        (add_incident(run) / "verdict.json").write_text("{")
    page = page_of(run)
    assert "from metrics.jsonl" in page
    assert "inf was born in exp" in page


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"kind": "header", "stage": "train", "num_samples": 4}],
        [step(1, loss=math.nan)],
        [step(i, loss=math.nan, layers=layers("a", "b", norm=math.nan, headroom=math.nan)) for i in (1, 2)],
        [step(i, loss=math.inf, layers=layers("a", norm=math.inf, headroom=-math.inf)) for i in (1, 2)],
        [step(1, loss=0.0, layers=layers("a", norm=0.0, headroom=math.inf))],
        [step(1, loss=5e-324), step(2, loss=1.7e308)],
        [step(1, loss=-1.7e308), step(2, loss=1.7e308)],
        [{**step(1), "loss": None, "layers": {"a": {}}, "parameters": {}}],
    ],
    ids=["none", "header", "one NaN", "all NaN", "all Inf", "zero", "widest", "widest signed", "nothing measured"],
)
def test_any_numbers_can_be_shown(tmp_path: Path, records: list[dict]) -> None:
    page = page_of(make_run(tmp_path / "run", records))
    assert not re.search(r' (points|cx|cy|x1|x2|y1|y2|d)="[^"]*(nan|inf)', page)  # coordinates are finite
    for name in ("curve-data", "heat-data"):
        if f'id="{name}"' in page:
            assert data(page, name)


def test_pictures_beyond_the_limits_are_left_out_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_pictures(run, 30)
    page = page_of(run)
    parsed = Parsed(page)
    assert parsed.elements["img"] == 8
    assert "22 pictures of 30 left out" in page
    assert "step-00000000" in page and "step-00000029" in page


# --- the verdict line ------------------------------------------------------------------------------------------------


def status(run: Path) -> tuple[str, str]:
    found = RunView.read(run).status
    return found.word, found.line


def test_the_verdict_line(tmp_path: Path) -> None:
    assert status(make_run(tmp_path / "empty"))[0] == "empty"
    assert status(make_run(tmp_path / "stopped", [step(3)])) == (
        "stopped",
        "no stage came to a result: interrupted or killed after 3 steps",
    )
    failed = make_run(tmp_path / "failed", stages={"overfit": stage(False, error="R^2 0.2\nlower the rate")})
    assert status(failed) == ("failed", "overfit: R^2 0.2")
    passed = make_run(tmp_path / "passed", [step(3)], stages={"train": stage(steps=3)})
    assert status(passed) == ("passed", "train, 3 steps")
    add_incident(passed)
    assert status(passed) == ("passed", "train, 3 steps; 1 incident before that")
    add_incident(failed)
    assert status(failed) == ("incident", "inf was born in exp, phase forward of step 7")


def test_a_verdict_that_a_resume_has_overtaken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(200), step(300)], stages={"train": stage(steps=200)})
    stopped = ("stopped", "train passed at 200 steps, was resumed, and stopped at step 300 without a result")
    assert status(run) == stopped
    add_incident(run, VERDICT | {"step": 99}, "step-00000100")  # before the stage passed
    assert status(run) == stopped


def test_an_incident_that_a_resume_has_overtaken(tmp_path: Path) -> None:
    """NaN at step 7, a resume from an earlier checkpoint, which takes its records away but not its folder."""
    story = "inf was born in exp, phase forward of step 7"
    before = {"train": stage(False, error=f"{story}\n  phase     forward")}
    killed = make_run(tmp_path / "killed", [step(n) for n in range(1, 21)], stages=before)
    add_incident(killed)
    assert status(killed) == (
        "stopped",
        "train stopped at step 20 without a result, resumed after an incident at step 7",
    )
    assert story in page_of(killed)
    failure = {"kind": "stage", "stage": "train", "step": 20, "passed": False, "message": "loss 2 at step 20"}
    after = {"train": stage(False, error="loss 2 at step 20\nlower the rate")}
    failed = make_run(tmp_path / "failed", [step(1), step(20), failure], stages=after)
    add_incident(failed)
    assert status(failed) == ("failed", "train: loss 2 at step 20")
    no_result = make_run(tmp_path / "no-result", [step(20)])
    add_incident(no_result)
    assert status(no_result)[1].endswith("killed after 20 steps, resumed after an incident at step 7")
    at_it = make_run(tmp_path / "at-it", [step(6)], stages=before)
    add_incident(at_it)
    assert status(at_it) == ("incident", story)


def test_a_failure_that_a_resume_has_overtaken(tmp_path: Path) -> None:
    failure = {"kind": "stage", "stage": "train", "step": 10, "passed": False, "message": "loss 2"}
    records = [step(10), failure, step(11)]
    run = make_run(tmp_path / "run", records, stages={"train": stage(False, error="loss 2")})
    assert status(run) == ("stopped", "train stopped at step 11 without a result, resumed after a failure")


def test_a_run_that_is_claimed_is_running(tmp_path: Path) -> None:
    header = {"kind": "header", "stage": "train"}
    ended = {"kind": "stage", "stage": "train", "step": 3, "passed": True}
    for name, records, line in (
        ("train", [header, step(3)], "train is under way, 3 steps so far"),
        ("begun", [{"kind": "header", "stage": "overfit"}], "overfit is under way, 0 steps so far"),
        ("check", [], "a stage is under way"),
        ("check-after", [header, step(3), ended], "a stage is under way; 3 steps recorded"),
    ):
        run = make_run(tmp_path / name, records)
        with (run / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert status(run) == ("running", line)
        assert status(run)[0] in ("stopped", "empty")


def test_the_device_is_the_one_that_trained(tmp_path: Path) -> None:
    environment = {"gpus": ["NVIDIA H100"], "packages": {"torch": "2.13"}}
    trained = make_run(
        tmp_path / "trained", [{"kind": "header", "stage": "train", "device": "CPU"}], environment=environment
    )
    assert dict(facts(RunView.read(trained)))["On"] == "CPU, torch 2.13"
    checked = make_run(tmp_path / "checked", environment=environment)
    assert dict(facts(RunView.read(checked)))["On"] == "a machine with NVIDIA H100, torch 2.13"


# --- health ----------------------------------------------------------------------------------------------------------


def again(run: Path, words: list[str], stages: dict) -> list[str]:
    made = make_run(run, stages=stages, environment={"command": words})
    return [command for command, _ in commands(RunView.read(made)) if "-again" in command]


def test_the_same_again_only_where_the_configuration_says_all(tmp_path: Path) -> None:
    words = ["train", "--precision", "fp16-pure", "--allow-unsafe", "--skip-stages"]
    [command] = again(tmp_path / "a", words, {"train": stage()})
    assert command.endswith("--run a-again --allow-unsafe --skip-stages")
    assert not again(tmp_path / "b", ["check-forward", "--object", "chair.png"], {"check-forward": stage()})
    assert not again(tmp_path / "c", words, {"overfit": stage()})  # which this train command started


def test_findings_of_many_steps_are_one_row(tmp_path: Path) -> None:
    found = [
        {
            "rule": "dead layer",
            "severity": "warning",
            "layer": "conv_in",
            "step": n,
            "evidence": {"share": 0.5 + n / 10},
        }
        for n in (1, 2, 4)
    ]
    run = make_run(tmp_path / "run", [{"kind": "health", "step": f["step"], "findings": [f]} for f in found])
    page = page_of(run)
    assert page.count("dead layer") == 1
    assert "1 to 4, 3 times" in page and "share 0.9" in page


def test_alarms_come_first(tmp_path: Path) -> None:
    reported = [
        {"rule": "late", "severity": "warning", "parameter": "conv.weight", "predicted_step": 90},
        {"rule": "first", "severity": "alarm", "layer": None, "step": None},
    ]
    page = page_of(make_run(tmp_path / "run", [{"kind": "health", "step": 3, "findings": reported}]))
    assert page.index("first</th>") < page.index("late</th>")
    assert "conv.weight" in page and "predicted for step 90" in page
    assert "The health rules found nothing." in page_of(make_run(tmp_path / "well", [step(1)]))


def test_the_rules_judge_the_records(tmp_path: Path) -> None:
    """What the run itself could not tell: nobody watched its records while it ran."""
    records = [step(i, layers=layers("a")) for i in (1, 2, 3)]
    for record, number in zip(records, (0, 0, 3), strict=True):
        record["layers"]["a"]["activation"]["num_nonfinite"] = number
    assert "non-finite</th>" in page_of(make_run(tmp_path / "run", records))


def test_every_finding_is_on_the_page(tmp_path: Path) -> None:
    """Findings that share rule and place, or have no place, differ by what they say; no row runs backwards."""
    silent = {"loss": 1.0, "response_theta": 0.0, "response_phi": 0.0, "response_size": 0.1}
    records = [step(n, layers=layers("a")) for n in range(1, 61)]
    records[49]["grad_norm"] = math.inf
    for record in records:
        for part, bad_at in (("activation", 20), ("gradient", 30)):
            record["layers"]["a"][part]["num_nonfinite"] = 3 if record["step"] == bad_at else 0
    records += [{"kind": "validation", "step": n, **silent} for n in (10, 20, 30, 50, 60)]
    records.append({"kind": "validation", "step": 40, **silent, "loss": math.nan})
    view = RunView.read(make_run(tmp_path / "run", records))
    rows = health_rows(view.findings, view.reported)
    assert sorted(row.evidence for row in rows) == sorted(finding["evidence"] for finding in view.findings)
    assert [(row.rule, row.steps) for row in rows if row.rule in ("non-finite", "no-response")] == [
        ("non-finite", "50"),
        ("non-finite", "40"),
        ("non-finite", "20"),
        ("non-finite", "30"),
        ("no-response", "60"),
        ("no-response", "60"),
    ]


def test_what_was_reported_again_is_one_row_and_none_where_it_is_found() -> None:
    def skips(number: int, at: int) -> dict[str, Any]:
        evidence = f"{number} of the last 100 steps were skipped"
        return {"rule": "scaler-collapse", "severity": "warning", "step": at, "evidence": evidence}

    low = {"rule": "scaler-collapse", "severity": "alarm", "step": 9, "evidence": "the loss scale is 0.5"}
    bad = {"rule": "non-finite", "severity": "alarm", "layer": "a", "step": 3}
    reported = [skips(30, 140), low, skips(26, 120), {**bad, "part": "gradient"}, {**bad, "part": "activation"}]
    rows = health_rows([{**bad, "part": "gradient"}], reported)
    assert [(row.rule, row.steps, row.evidence) for row in rows] == [
        ("non-finite", "3", ""),
        ("scaler-collapse", "9", "the loss scale is 0.5"),
        ("non-finite", "3", ""),
        ("scaler-collapse", "120 to 140", "26 of the last 100 steps were skipped"),
    ]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "mine", [step(1)])
    add_incident(run)
    by_name = report("mine")
    assert by_name.exit_code == 0
    assert by_name.stdout.splitlines() == ["runs/mine/reports/report.html"]
    assert Path("runs/mine/reports/report.html").is_file()
    monkeypatch.chdir("runs/mine")
    assert report(".").stdout.splitlines() == ["reports/report.html"]
    assert "<h1>mine</h1>" in Path("reports/report.html").read_text()
    monkeypatch.chdir(tmp_path)
    by_incident = report("runs/mine/incidents/step-00000007", "--out", "elsewhere/page.html", "--json")
    document = json.loads(by_incident.stdout)
    assert document["report"] == "elsewhere/page.html" and document["status"] == "incident"
    assert document["bytes"] == Path("elsewhere/page.html").stat().st_size
    assert not list(Path("elsewhere").glob(".*"))


@pytest.mark.parametrize("out", [".", "..", "pages", "pages/", "~nobody-of-this-name"])
def test_a_folder_gets_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    run = make_run(tmp_path / "runs" / "mine", [step(1)])
    for name in ("pages", "~nobody-of-this-name"):
        (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert report(str(run), "--out", out).stdout.splitlines() == [str(Path(out) / "report.html")]
    assert "<h1>mine</h1>" in (Path(out) / "report.html").read_text()


def test_the_root_gets_the_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(page_module, "replace", lambda path, content: written.append(path))
    result = report(str(make_run(tmp_path / "mine", [step(1)])), "--out", "/")
    assert result.exit_code == 0 and written == [Path("/report.html")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], ["absent: no such run", "shadowlab runs"]),
        (["."], ["not a run folder", "metrics.jsonl"]),
        (["runs/mine", "--out", "x" * 300], ["xx: cannot be written", "--out"]),
        (["runs/mine", "--out", "runs/mine/config.yaml/page.html"], ["cannot be written", "--out"]),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "mine")
    result = report(*arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert all(word in line for word in words), line
