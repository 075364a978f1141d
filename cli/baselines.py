"""What models are compared with."""

from pathlib import Path
from typing import Annotated

import typer

from shadowlab.settings import Request


def fit_baselines(
    request: Request,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the camera is written, as JSON.")] = Path(
        "view.json"
    ),
) -> None:
    """Find the camera and the thickness that the inflated silhouette needs, on the training split alone.

    Where no such file is given, the baselines take the camera of data render.

    Example: shadowlab fit-baselines --data my-renders --out view.json
    """
    from dataclasses import asdict

    from shadowlab.console import Reporter
    from shadowlab.tasks.shadow import fit_view

    reporter = Reporter(as_json=request.as_json, quiet=request.quiet)
    fit = fit_view(request.config(), out.expanduser(), reporter)
    view, figures = asdict(fit.view), fit.figures
    reporter.say("  ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in view.items()))
    reporter.conclude(
        f"{out}: fitted on {fit.num_samples} samples of {len(fit.objects)} objects, all of the training split of "
        f"{fit.data}; inflated silhouette on them: soft IoU {figures['soft_iou']:.3f}, RMSE {figures['rmse']:.4f}, "
        f"ZNCC {figures['zncc']:.3f}"
    )
    reporter.result({"passed": True, "out": str(out), **asdict(fit)})
