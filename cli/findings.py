"""What is wrong with a run: what its records show, why it met NaN and Inf, and what each kind looks like."""

from typing import Annotated

import typer

from cli.completion import complete_runs
from cli.options import Device, Json


def why(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run folder, its name or latest (its newest incident; latest of the runs that have one), or an "
            "incident folder.",
            autocompletion=complete_runs,
        ),
    ],
    device: Device = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this counterfactual alone; may be given again: again, float32, bfloat16, eps, clip, scale, "
            "attention, samples, weights, repair, operator."
        ),
    ] = None,
    no_counterfactuals: Annotated[bool, typer.Option("--no-counterfactuals", help="Print the verdict alone.")] = False,
    as_json: Json = False,
) -> None:
    """Say why a step met NaN or Inf, and what would have helped: the step is repeated with one thing changed.

    Example:
    shadowlab why RUN
    shadowlab why runs/NAME/incidents/step-00000412 --only float32
    """
    from shadowlab.console import Reporter
    from shadowlab.stages.why import find_incident, run_why

    incident = find_incident(path)
    run_why(incident, Reporter(as_json=as_json), device=device, only=only or [], counterfactuals=not no_counterfactuals)


def health(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A run folder, its name, latest, or a metrics.jsonl.", autocompletion=complete_runs
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Ask this rule alone; may be given again.")] = None,
    show_rules: Annotated[bool, typer.Option("--list", help="List the rules with their thresholds.")] = False,
    as_json: Json = False,
) -> None:
    """Judge a run by its records: headroom, gradients, dead layers, data, memory. Exit code 1 for an alarm.

    Example:
    shadowlab health latest
    shadowlab health --list
    """
    from shadowlab.console import Reporter
    from shadowlab.errors import UserError
    from shadowlab.runs import find_run
    from shadowlab.views.terminal import find_rules, list_rules, run_health

    reporter, rules = Reporter(as_json=as_json), find_rules(only or [])
    if (run is None) != show_rules:
        raise UserError("name a run, or give --list to see the rules; not both")
    if run is None:
        list_rules(rules, reporter)
    elif not run_health(find_run(run).metrics, rules, reporter):
        raise typer.Exit(1)


def drill(
    name: Annotated[str | None, typer.Argument(help="The fault to put in; without it they are listed.")] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run every one.")] = False,
    as_json: Json = False,
) -> None:
    """Put a known fault into the tiny shadow model and see what the verdict looks like.

    Example: shadowlab drill drift
    """
    from shadowlab.console import Reporter
    from shadowlab.drill import find_drills, list_drills, report_drill, run_drill
    from shadowlab.errors import UserError

    if name is not None and run_all:
        raise UserError("give a drill's name or --all, not both")
    drills = find_drills(name)
    reporter = Reporter(as_json=as_json)
    if name is None and not run_all:
        list_drills(drills, reporter)
        return
    results = []
    for one in drills:
        results.append(run_drill(one))
        report_drill(results[-1], reporter)
    passed = all(result.passed for result in results)
    reporter.result({"passed": passed, "drills": [result.to_json() for result in results]})
    if not passed:
        raise typer.Exit(1)
