"""Views of runs, made from their files: they can be thrown away and made again."""

from pathlib import Path
from typing import Annotated

import typer

from cli.completion import complete_runs
from cli.options import Json


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="The folder of the runs.", show_default="runs, as output_dir"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs, the one that was worked at last first: stage, state, step, quality, age and size.

    Where a command takes a RUN, `latest` is the first that has a stage or records here.

    Example:
    shadowlab runs
    shadowlab runs DIR --json
    """
    from shadowlab.console import Reporter
    from shadowlab.settings import Config
    from shadowlab.views.terminal import run_runs

    run_runs(folder or Path(Config().output_dir), Reporter(as_json=as_json))


def inspect(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run folder, the name of one below runs/, or latest.", autocompletion=complete_runs
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            help="Statistic: norm, mean, std, max_abs, fraction_zero, num_nonfinite or headroom of activations, "
            "gradient.NAME for gradients, parameter.gradient_norm, update_ratio.",
            show_default="headroom where it is below 40 bits, else gradient.norm; norm with --against",
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step to look at.", show_default="the last with statistics")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Layers to show.", show_default="15")] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="Shell pattern over names, such as 'mid_block.*'; may be given again.")
    ] = None,
    ascending: Annotated[
        bool | None,
        typer.Option(
            "--ascending/--descending", help="Order.", show_default="smallest first for headroom, else largest"
        ),
    ] = None,
    over_time: Annotated[str | None, typer.Option(metavar="LAYER", help="The curve of this layer alone.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Hold another run against it: where do they part?", autocompletion=complete_runs
        ),
    ] = None,
    rtol: Annotated[
        float | None,
        typer.Option(
            help="With --against: relative difference up to which numbers count as equal.", show_default="0.0001"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Browse a run's layers by any statistic at any step, NaN first.

    Example:
    shadowlab inspect RUN --by gradient.norm --top 4
    shadowlab inspect RUN --against OTHER
    """
    from shadowlab.console import Reporter
    from shadowlab.runs import find_run
    from shadowlab.views.terminal import Query, run_inspect

    query = Query(by, step, top, tuple(layers or ()), ascending, over_time, rtol)
    run_inspect(find_run(run), None if against is None else find_run(against), query, Reporter(as_json=as_json))


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run folder, its name, latest, or an incident in it.", autocompletion=complete_runs
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write, or a folder for it; reports/report.html in the run's where not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: incidents, stages, curves, layers. It opens from disk, without a network.

    Example: shadowlab report RUN
    """
    from shadowlab.console import Reporter
    from shadowlab.runs import find_run
    from shadowlab.views.page import write_report

    reporter = Reporter(as_json=as_json)
    written = write_report(find_run(run, with_records=False).path, out)
    for problem in written.problems:
        reporter.warn(problem)
    reporter.say(str(written.file))
    reporter.result(written.to_json())


def track(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, its name, or latest.", autocompletion=complete_runs),
    ],
    to: Annotated[list[str] | None, typer.Option(help="Tracker: wandb or mlflow; may be given again.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's records and pictures to W&B or MLflow, as one session, whatever was tracked while it trained.

    Example: shadowlab track RUN --to wandb
    """
    from shadowlab.console import Reporter
    from shadowlab.views.trackers import run_track

    run_track(run, to or [], Reporter(as_json=as_json))


def tensorboard(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run folder, its name, latest, or a folder of several runs.",
            autocompletion=complete_runs,
        ),
    ],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, show_default="the first free one from 6006", help="0: any.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")] = "localhost",
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Rebuild the view from metrics.jsonl and samples/, in tensorboard-rebuilt/."),
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Rebuild it with every statistic and step of the layers that match this shell pattern, such as "
            "'up_blocks.0.*'; may be given again."
        ),
    ] = None,
) -> None:
    """Serve a run in TensorBoard until Ctrl-C: layers by block, charts, heat maps, pictures, incidents.

    Example:
    shadowlab tensorboard RUN
    shadowlab tensorboard runs --port 6006
    """
    from shadowlab.console import Reporter
    from shadowlab.views.tensorboard import run_tensorboard

    run_tensorboard(run, Reporter(), port=port, host=host, rebuild=rebuild, layers=layers or [])
