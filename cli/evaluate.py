"""Judging a model on a data set, and two against each other."""

from pathlib import Path
from typing import Annotated

import typer

from cli.completion import complete_runs
from cli.options import Device, Json, Quiet

EVALUATION_IS_KEPT = "samples judged so far are kept; go on with the same command"


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A run, a checkpoint, an exported pipeline, a model that ships, all-black, drop-shadow, "
        "inflated-silhouette or truth.",
        autocompletion=complete_runs,
        show_default=False,
    ),
]
Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="A B",
        help="Judge two, or take two finished evaluations, and pair them sample by sample.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="Data set to judge on: a folder, a tar, or `embedded`.", show_default="the model's own"),
]
Steps = Annotated[str | None, typer.Option(help="Numbers of sampling steps, with commas.", show_default="1,4,20")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds, from 0 on.", show_default="10")]
Baselines = Annotated[bool, typer.Option("--baselines/--no-baselines", help="Judge the baselines, too.")]
Control = Annotated[int, typer.Option(min=0, metavar="N", help="Objects whose light is changed to measure control.")]
Weights = Annotated[
    str | None,
    typer.Option(metavar="ema|raw", help="Averaged weights, or those of the last step.", show_default="ema"),
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side in pixels at which is judged.", show_default="the model's own")
]
ViewFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Camera of the baselines, from fit-baselines.", show_default="that of data render"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the results; a stopped evaluation goes on there.",
        show_default="evaluations/MODEL-on-DATA",
    ),
]


def evaluate(
    model: Model = None,
    compare: Compare = None,
    data: Data = None,
    steps: Steps = None,
    seeds: Seeds = None,
    baselines: Baselines = True,
    control: Control = 16,
    weights: Weights = None,
    image_size: ImageSize = None,
    view: ViewFile = None,
    out: Out = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge a model on every sample of a data set: metrics, baselines, control, pictures, a page.

    Writes evaluation.json, per_image.jsonl, evaluation.html and pictures/. The benchmark's tar has three tracks, a
    folder is one.

    Example:
    shadowlab evaluate latest --data my-renders
    shadowlab evaluate latest --data benchmark.tar --processes 4 --out judged
    shadowlab evaluate inflated-silhouette --data my-renders
    shadowlab evaluate --compare RUN OTHER --data my-renders
    """
    from shadowlab import evaluation
    from shadowlab.console import Reporter
    from shadowlab.distributed import workers
    from shadowlab.errors import UserError

    if (model is None) == (compare is None):
        raise UserError("evaluate: give one MODEL, or --compare A B")
    question = evaluation.Question(
        data=data,
        steps=evaluation.parse_steps(steps),
        num_seeds=seeds,
        weights=weights,  # type: ignore[arg-type]  # judged there
        image_size=image_size,
        baselines=baselines,
        control_objects=control,
        task_options={} if view is None else {"view": str(view)},
    )
    compared, judged = None, None
    with workers(device or "auto") as processes:
        reporter = Reporter(as_json=as_json, active=processes.is_main, quiet=quiet)
        if compare is not None:
            compared = evaluation.compare_models(compare, question, processes, reporter, out=out)
        else:
            judged = evaluation.evaluate(question.of(model or ""), processes, reporter, out=out)
    if compared is not None:  # the first process has it
        evaluation.show_comparison(compared, reporter)
    if judged is not None:
        evaluation.show_evaluation(judged, reporter)
