"""The `shadowlab` command: parse, call one function, print, exit code. No logic.

torch is imported inside the commands, so that --help answers at once.
"""

import os
from typing import Annotated

import typer

from cli import bench, data, findings, stages, views
from cli.errors import reports_errors, run_reporting_usage
from cli.options import Command, Group
from cli.request import with_request

# Read by torch at its first allocation: large tensors on huge pages. On a CPU, page faults are a quarter of the time
# that SDXL takes at 1024 x 1024.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

app = typer.Typer(
    name="shadowlab",
    cls=Group,
    help="Debugging-first training of the SDXL shadow generator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Make and examine data sets.", cls=Group, no_args_is_help=True)
bench_app = typer.Typer(
    help="Measure this project: right verdicts, what watching costs, the step's speed, and whether plans hold.",
    no_args_is_help=True,
)

for stage in (stages.check_forward, stages.check_precision, stages.overfit, stages.train):
    app.command(stage.__name__.replace("_", "-"), cls=Command)(reports_errors(with_request(stage)))
app.command("plan", cls=Command)(reports_errors(with_request(stages.plan, without=("quiet",))))  # it is one table
for group, commands in {
    app: (
        *(findings.why, findings.health, findings.drill),
        *(views.tensorboard, views.inspect, views.report),
        data.train_vae,
    ),
    data_app: (data.render, data.check),
    bench_app: (bench.faults, bench.overhead, bench.step, bench.memory, bench.views),
}.items():
    for command in commands:
        group.command(command.__name__.replace("_", "-"), cls=Command)(reports_errors(command))
data_app.command("encode", cls=Command)(
    reports_errors(with_request(data.encode, without=("run", "precision", "allow_unsafe")))
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from shadowlab import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    from shadowlab.launched import end_with_launcher

    end_with_launcher()
    run_reporting_usage(app)


if __name__ == "__main__":
    main()
