"""The page: one HTML file with its styles, script, pictures and data inside, which a policy keeps from any network."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import paths_in, reason_of, replace, require_inside
from shadowlab import __version__
from shadowlab.errors import UserError
from shadowlab.settings import parse_yaml
from shadowlab.views.page import curves, wording
from shadowlab.views.page.health_table import health_rows
from shadowlab.views.page.heat_map import HeatMap
from shadowlab.views.page.pictures import Gallery
from shadowlab.views.page.related import Related, related_stages
from shadowlab.views.page.run_view import RunView
from shadowlab.views.page.stage_tables import StageTable, Vocabulary
from shadowlab.views.page.template import page_environment, policy_hash, style_and_script


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    file: Path
    num_bytes: int
    status: str
    """As `Status.word`."""
    problems: tuple[str, ...]
    """What of the run could not be read, as the page says."""

    def to_json(self) -> dict[str, Any]:
        return {
            "report": str(self.file),
            "bytes": self.num_bytes,
            "status": self.status,
            "problems": list(self.problems),
        }


def write_report(run: Path, out: Path | None = None) -> Report:
    """Write the page of a run; RUN/reports/report.html if `out` is None, OUT/report.html if that is a folder.

    Raises:
        UserError: the file cannot be written.
    """
    view = RunView.read(run)
    file = run / "reports" / "report.html" if out is None else _destination(out)
    content = build_page(view, related_stages(run, file)).encode("utf-8", "replace")  # JSON may hold half a surrogate
    try:
        if out is None:
            require_inside(file.parent, run)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({reason_of(error)}); choose another file with --out") from None
    problems = (*view.problems, *(problem for story in view.incidents for problem in story.problems))
    return Report(file, len(content), view.status.word, problems)


def _destination(out: Path) -> Path:
    """The file itself, or report.html in a folder."""
    try:
        place = out.expanduser()
    except RuntimeError:  # ~name of nobody: a folder of that name, as shells take it
        place = out
    try:
        return place / "report.html" if place.is_dir() else place
    except OSError:  # writing to it says why
        return place


def build_page(run: RunView, related: Sequence[Related] = ()) -> str:
    """The HTML. related: the stages that the run's belongs to."""
    style, script = style_and_script()
    drawings = curves.drawings(run.history, run.plots)
    words = Vocabulary.of(run.history.header, run.charts)
    return (
        page_environment()
        .get_template("report.html")
        .render(
            run=run,
            status=run.status,
            facts=facts(run),
            related=related,
            stages=[StageTable.of(name, entry, words) for name, entry in run.stages.items()],
            gallery=Gallery.of(run.path / "samples"),
            drawings=drawings,
            curve_size=(curves.WIDTH, curves.HEIGHT),
            curve_data={drawing.panel.key: drawing.data for drawing in drawings},
            heat_map=HeatMap.of(run.history),
            health=health_rows(run.findings, run.reported),
            is_judged=bool(run.history.kinds),
            environment=_flat(run.environment),
            commands=commands(run),
            version=__version__,
            axis="step",
            style=style,
            script=script,
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
        )
    )


def facts(run: RunView) -> list[tuple[str, str]]:
    """What was run, for the head of the page."""
    header, environment, config = run.history.header, run.environment, _config(run)
    train = config.get(run.history.kind) if isinstance(config.get(run.history.kind), dict) else {}
    taken = max(run.history.steps(), default=0)
    wanted = train.get("max_steps") if isinstance(train, dict) else None
    packages = environment.get("packages")
    torch = packages.get("torch", "") if isinstance(packages, Mapping) else ""
    gpus = environment.get("gpus") or []
    there = f"a machine with {', '.join(map(str, gpus))}" if isinstance(gpus, list) and gpus else "CPU"
    device = header.get("device") or there  # stages that do not train have no header
    last = run.last_stage
    found = [
        ("Configuration", environment.get("source")),
        ("Precision", header.get("precision") or config.get("precision")),
        ("Steps", f"{taken:,} of {wanted:,}" if isinstance(wanted, int) else f"{taken:,}"),
        ("Parameters", header.get("num_parameters")),
        ("Training samples", header.get("num_samples")),
        ("Augmentation", header.get("augmentation")),
        ("Started from", _start(header.get("start"))),
        ("On", f"{device}, torch {torch}" if torch else None),
        ("When", _span(str(environment.get("created") or ""), str(last[1].get("finished") or "") if last else "")),
    ]
    return [(name, wording.plain(value)) for name, value in found if value]


def _start(given: Any) -> str | None:
    """The run whose weights it began with."""
    if not isinstance(given, Mapping):
        return None
    step = given.get("step")
    return f"{given.get('run')}" + ("" if step is None else f", step {step}")


def commands(run: RunView) -> list[tuple[str, str]]:
    """(command, what it does) to do it again and to look further."""
    place, found = str(run.path), []
    words = run.environment.get("command")
    words = [str(word) for word in words] if isinstance(words, list) else []
    if words:
        found.append((shlex.join(["shadowlab", *words]), "the command that made this run"))
    found += [(one.command, f"the command that resumed it; {one.text}") for one in run.resumed if one.command]
    # Other stages take options that the configuration does not hold, and `train` starts stages in folders of their own.
    own = words[0] if words and words[0] in ("overfit", "train") else None
    if run.config and own and (run.last_stage is None or run.last_stage[0] == own):
        again = ["shadowlab", own, "--config", f"{place}/config.yaml", "--run", f"{run.name}-again"]
        again += [word for word in words if word in ("--skip-stages", "--allow-unsafe")]
        found.append((shlex.join(again), "the same with the configuration as it was resolved, in a folder of its own"))
    if any(paths_in(run.path / "tensorboard", "**/events.*", inside=run.path)):
        found.append((shlex.join(["shadowlab", "tensorboard", place]), "every layer's curves"))
    found.append((shlex.join(["shadowlab", "report", place]), "this page again"))
    return found


def _config(run: RunView) -> dict[str, Any]:
    try:
        content = parse_yaml(run.config)
    except ValueError:  # the page shows the text as it is
        return {}
    return content if isinstance(content, dict) else {}


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            rows += [(f"{key} {inner}", wording.plain(item)) for inner, item in value.items()]
        elif key == "command" and isinstance(value, list):
            rows.append((key, shlex.join(map(str, value))))
        else:
            rows.append((key, wording.plain(value) or "none"))
    return rows


def _span(began: str, ended: str) -> str:
    """Two ISO times of UTC, either of which may be unknown; one day is written once."""
    times = [f"{time[:10]} {time[11:16]}" for time in (began, ended) if time.endswith("+00:00")]
    if len(times) == 2 and times[0][:10] == times[1][:10]:
        times[1] = times[1][11:]
    return f"{' to '.join(times)} UTC" if times else ""
