"""The commands and where they are listed: each parses, calls one function, prints, and has an exit code. No logic.

torch is imported inside the commands, so that --help answers at once.
"""

import os
from typing import Annotated

import typer

from cli import baselines, bench, config, data, demo, doctor, evaluate, export, findings, generate, stages, views, watch
from cli.errors import reports_errors
from cli.help import Group, add_command
from cli.processes import in_processes
from cli.request import with_request

# Read by torch at its first allocation: large tensors on huge pages. On a CPU, page faults are a quarter of the time
# that SDXL takes at 1024 x 1024.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

app = typer.Typer(
    name="shadowlab",
    cls=Group,
    help="Debugging-first training of diffusion models.",
    epilog="New here: shadowlab doctor, then check-forward, overfit, train. Help on one: shadowlab COMMAND -h",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show the configuration and what may stand in it.", cls=Group, no_args_is_help=True)
data_app = typer.Typer(help="Make and examine data sets.", cls=Group, no_args_is_help=True)
bench_app = typer.Typer(
    help="Measure this project: right verdicts, what watching costs, the step's speed, and whether plans hold.",
    cls=Group,
    no_args_is_help=True,
)

# In the order in which a user comes to need them.
BEFORE, TRAIN, LOOK = "Before the first run", "Train", "Look at a run"
USE = "Judge and use a model"
ORIGIN, DATA, PROJECT = "Find where NaN and Inf come from", "Data and autoencoder", "This project"

examined = with_request(doctor.doctor, without=("run", "quiet", "seed", "data.path", "model.weights"))
add_command(app, reports_errors(examined), panel=BEFORE)
app.add_typer(config_app, name="config", rich_help_panel=BEFORE)
# It prints one table, so that there is nothing to be quiet about.
plan = with_request(stages.plan, keys=("train.batch_size", "model.gradient_checkpointing"), without=("quiet",))
add_command(app, reports_errors(plan), panel=BEFORE)
for stage, keys in {
    stages.check_forward: ("distributed.processes",),
    stages.overfit: ("overfit.num_samples", "overfit.max_steps"),
    stages.train: ("train.max_steps", "distributed.processes"),
    stages.check_precision: (),
}.items():
    add_command(app, reports_errors(with_request(stage, keys=keys)), panel=TRAIN)
add_command(app, reports_errors(in_processes(generate.generate)), panel=USE)
judged = in_processes(evaluate.evaluate, kept=evaluate.EVALUATION_IS_KEPT)
add_command(app, reports_errors(judged), panel=USE)
for panel, commands in {
    LOOK: (views.runs, views.tensorboard, views.track, views.report, views.inspect, findings.health),
    USE: (export.export, demo.demo),
    ORIGIN: (findings.why, findings.drill),
    DATA: (data.train_vae,),
}.items():
    for command in commands:
        add_command(app, reports_errors(command), panel=panel)
add_command(app, reports_errors(watch.watch), panel=ORIGIN, takes_words=True)
fit = with_request(baselines.fit_baselines, without=("run", "device", "precision", "allow_unsafe", "model.weights"))
add_command(app, reports_errors(fit), panel=DATA)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
app.add_typer(bench_app, name="bench", rich_help_panel=PROJECT)

add_command(config_app, reports_errors(with_request(config.show, without=("run", "quiet"))))
add_command(config_app, reports_errors(config.schema))
check = in_processes(data.check, device="cpu", kept=data.CHECK_IS_KEPT)
of_config = ("run", "device", "precision", "allow_unsafe", "data.path", "model.weights")
add_command(data_app, reports_errors(with_request(check, without=of_config)))
for command in (in_processes(data.render), in_processes(data.pack)):
    add_command(data_app, reports_errors(command))
encode = in_processes(data.encode)
add_command(data_app, reports_errors(with_request(encode, without=("run", "precision", "allow_unsafe"))))
for command in (
    *(bench.faults, bench.silent, bench.hosts, bench.overhead, bench.explain_cost),
    *(bench.step, bench.memory, bench.views),
):
    add_command(bench_app, reports_errors(command))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from shadowlab import __version__

        typer.echo(__version__)
        raise typer.Exit
