"""Views of a run, made from its files: they can be thrown away and made again."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json


def report(
    run: Annotated[str, typer.Argument(help="A run folder, its name, or an incident in it.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; reports/report.html in the run's folder where not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: incidents, stages, curves, layers. It opens from disk, without a network."""
    from shadowlab.report.page import write_report
    from shadowlab.report.run_view import find_run
    from shadowlab.reporter import Reporter

    reporter = Reporter(as_json=as_json)
    written = write_report(find_run(run), out)
    for problem in written.problems:
        reporter.warn(problem)
    reporter.say(str(written.file))
    reporter.result(written.to_json())
