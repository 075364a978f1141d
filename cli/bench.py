"""Measurements of this project itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json

if TYPE_CHECKING:
    from shadowlab.console import Reporter


def faults(
    peers: Annotated[bool, typer.Option("--peers", help="Also run the tools that users pick today.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Name of a case; may be given again.")] = None,
    as_json: Json = False,
) -> None:
    """Score `explain` and `Watch` on a corpus of known faults: every field of every verdict, and false alarms.

    Example: shadowlab bench faults --peers
    """
    from shadowlab.bench.faults import format_report, run_faults
    from shadowlab.console import Reporter

    reporter = Reporter(as_json=as_json)
    report = run_faults(only, peers=peers)
    reporter.say(format_report(report))
    reporter.result(report.to_json())
    if not report.passed:
        raise typer.Exit(1)


def silent(
    peers: Annotated[bool, typer.Option("--peers", help="Also run the tools that users pick today.")] = False,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Put faults into a copy of this project instead: which stage stops them.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a case, of a mutant or of its family; may be given again.")
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option(help="With --mutants: check-forward, data check, overfit or train; may be given again."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="With --mutants: how many at a time.")] = 1,
    as_json: Json = False,
) -> None:
    """Score `Watch` on loops that are finite and wrong, and on healthy ones that look odd: found, when, and where.

    Example:
    shadowlab bench silent --peers
    shadowlab bench silent --mutants --only average
    """
    from shadowlab.console import Reporter
    from shadowlab.errors import UserError

    reporter = Reporter(as_json=as_json)
    if mutants and peers:
        raise UserError("--peers: other tools are not run on mutants; leave one of both out")
    if not mutants and (stages or processes > 1):
        raise UserError("--stages and --processes are for --mutants; leave them out or add it")
    document = _of_mutants(reporter, only, stages, processes) if mutants else _of_loops(reporter, only, peers)
    reporter.result(document)
    if not document["passed"]:
        raise typer.Exit(1)


def _of_loops(reporter: "Reporter", only: list[str] | None, peers: bool) -> dict[str, Any]:
    from shadowlab.bench.silent import format_report, run_silent

    report = run_silent(only, peers=peers)
    reporter.say(format_report(report))
    return report.to_json()


def _of_mutants(
    reporter: "Reporter", only: list[str] | None, stages: list[str] | None, processes: int
) -> dict[str, Any]:
    from shadowlab.bench.mutants import checked_stages, format_table, line, run_mutants

    report = run_mutants(
        only, stages=checked_stages(stages), processes=processes, on_result=lambda result: reporter.say(line(result))
    )
    reporter.say(format_table(report))
    return report.to_json()


def hosts(
    only: Annotated[
        list[str] | None, typer.Option(help="A host: plain, trainer, ddp, ...; may be given again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the watch into the loops of others, from accelerate to FSDP2: lines added, verdicts, the same bits.

    Example: shadowlab bench hosts
    """
    from shadowlab.bench.hosts import format_report, run_hosts
    from shadowlab.console import Reporter

    reporter = Reporter(as_json=as_json)
    report = run_hosts(only, on_host=lambda name: reporter.say(f"{name} ..."))
    reporter.say(format_report(report))
    reporter.result(report.to_json())
    if not report.passed:
        raise typer.Exit(1)


def overhead(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the figures are medians of ratios.")] = 11,
    trips: Annotated[int, typer.Option(min=0, help="Faults to time from trip to verdict, of each kind.")] = 3,
    parameters: Annotated[float, typer.Option(min=1e4, help="Size of the SDXL-shaped UNet.")] = 80e6,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure what watching costs, against a bare step and the tools that users pick today.

    Example: shadowlab bench overhead --rounds 5
    """
    from shadowlab.bench.overhead import format_table, measure_overhead
    from shadowlab.console import Reporter
    from shadowlab.distributed import pick_device

    reporter = Reporter(as_json=as_json)
    place = str(pick_device(device))
    report = measure_overhead(parameters, repeats=rounds, trips=trips, device=place, on_row=reporter.say)
    reporter.say(format_table(report))
    reporter.result(report.to_json())


def explain_cost(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the figures are medians of ratios.")] = 3,
    cells: Annotated[list[int] | None, typer.Option(min=1, help="GRU cells of a loop; may be given again.")] = None,
    parameters: Annotated[float, typer.Option(min=0, help="Size of the SDXL-shaped UNet; 0 leaves it out.")] = 80e6,
    as_json: Json = False,
) -> None:
    """Measure how many steps' time `explain` takes, over the number and the size of operators.

    Example: shadowlab bench explain-cost --cells 500 --cells 2000
    """
    from shadowlab.bench.explain_cost import format_table, measure_explain_cost
    from shadowlab.console import Reporter

    reporter = Reporter(as_json=as_json)
    report = measure_explain_cost(cells or (500, 2000), rounds, parameters, reporter.say)
    reporter.say(format_table(report))
    reporter.result(report.to_json())
    if not report.passed:
        raise typer.Exit(1)


def step(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the figures are medians of ratios.")] = 15,
    parameters: Annotated[float, typer.Option(min=1e4, help="Size of the SDXL-shaped UNet.")] = 80e6,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 4,
    size: Annotated[int, typer.Option(min=4, help="Side of the latents; pictures are 8 times as wide.")] = 32,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    only: Annotated[list[str] | None, typer.Option("--option", help="Name of an option; may be given again.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the harness's step against a bare PyTorch loop, the speed options, and what a latent cache saves.

    Example: shadowlab bench step --precision bf16 --device cuda
    """
    from shadowlab.bench.step import chosen_options, format_table, measure_step
    from shadowlab.console import Reporter
    from shadowlab.distributed import pick_device

    reporter = Reporter(as_json=as_json)
    report = measure_step(
        parameters,
        batch,
        size,
        rounds,
        reporter.say,
        precision=precision,
        device=str(pick_device(device)),
        options=chosen_options(only),
    )
    reporter.say(format_table(report))
    reporter.result(report.to_json())


def memory(
    parameters: Annotated[float, typer.Option(min=1e4, help="Size of the SDXL-shaped UNet.")] = 200e6,
    image_size: Annotated[int, typer.Option(help="Side of the pictures in pixels; latents are an eighth.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16; a half type takes a CPU long.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Hold the plan of `shadowlab plan` against the measured peak, without and with checkpointing.

    Example: shadowlab bench memory --parameters 8e7 --image-size 256
    """
    from shadowlab.bench.memory import measure_memory
    from shadowlab.bench.trial import narrowed_sdxl
    from shadowlab.console import Reporter
    from shadowlab.distributed import pick_device

    reporter = Reporter(as_json=as_json)
    found = measure_memory(
        narrowed_sdxl(parameters),
        image_size=image_size,
        batch_size=batch,
        device=pick_device(device),
        precision=precision,
        on_case=lambda case: reporter.say(f"{case.text}\n"),
    )
    reporter.result({"cases": [case.to_json() for case in found]})


def views(
    steps: Annotated[int, typer.Option(min=1, help="Logged steps.")] = 1000,
    long_run: Annotated[
        int | None,
        typer.Option(min=8, metavar="STEPS", help="Time and memory of each command on a run of so many steps instead."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="With --long-run: where the run is, or is written to be kept.", show_default="none"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the TensorBoard view of a run of SDXL's layers: bytes of event files, and time a logged step.

    Example:
    shadowlab bench views --steps 200
    shadowlab bench views --long-run 150000
    """
    from shadowlab.bench import long_run as of_long_run
    from shadowlab.bench.views import format_table, measure_views
    from shadowlab.console import Reporter

    reporter = Reporter(as_json=as_json)
    if long_run is not None:
        found = of_long_run.measure_long_run(long_run, run, reporter.say)
        reporter.say(of_long_run.format_table(found))
        reporter.result(found.to_json())
        return
    report = measure_views(steps, reporter.say)
    reporter.say(format_table(report))
    reporter.result(report.to_json())
