"""A training script that is not ours, under watch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

_Incidents = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where incidents are written; by default `incidents`, in the records' folder if there is one.",
    ),
]
_Records = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write what each step shows to DIR/metrics.jsonl, for health, inspect, report and tensorboard.",
    ),
]
_StatisticsEvery = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Steps between statistics of every layer and parameter in the records, 50 if left out; 0 for none.",
    ),
]


def watch(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="The script, as `python` would take it.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="All that follows is the script's.")
    ] = None,
    is_module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as of `python -m`.")] = False,
    incidents: _Incidents = None,
    records: _Records = None,
    statistics_every: _StatisticsEvery = None,
    from_step: Annotated[
        int | None,
        typer.Option(metavar="K", help="Run it again from its beginning and trace its step K, counted from 1."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Make that second run at once where a step cannot be repeated in place.")
    ] = False,
) -> None:
    """Run a training script as it is, and stop it before a NaN or Inf is kept, saying where it was born.

    A step is what the script does from one optimizer step to the next. Its own exit code is kept; 1 where it was
    stopped.

    Example:
    shadowlab watch train.py --lr 0.1 --epochs 3
    shadowlab watch -m project.train --config base.yaml
    shadowlab watch --records runs/mine --statistics-every 20 train.py --lr 0.1
    shadowlab watch --from-step 412 train.py --lr 0.1 --epochs 3
    """
    from shadowlab.foreign import Options, Script, run_again, watch_script, without_our_frames
    from shadowlab.interruption import signals
    from shadowlab.standard_streams import handed_over

    folder = Path.cwd()  # the script may go to another
    found = Script.find(script, tuple(arguments or ()), is_module=is_module)
    options = Options.checked(incidents, from_step, explain=explain, records=records, statistics_every=statistics_every)
    with signals.handed_over(), handed_over():
        outcome = watch_script(found, options)
        raised = outcome.raised
        if raised is not None and not isinstance(raised, SystemExit):
            without_our_frames(raised)
            sys.excepthook(type(raised), raised, raised.__traceback__)
    for line in outcome.lines:
        typer.echo(line, err=True)
    if explain and outcome.again is not None:
        raise typer.Exit(run_again(outcome.again, folder))
    if isinstance(raised, SystemExit):
        raise raised
    if raised is not None or outcome.was_stopped:
        raise typer.Exit(130 if isinstance(raised, KeyboardInterrupt) else 1)
