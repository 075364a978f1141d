"""Views of a run, made from its files: they can be thrown away and made again."""

from typing import Annotated

import typer


def tensorboard(
    run: Annotated[str, typer.Argument(help="A run folder, its name, or a folder of several runs.")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, show_default="the first free one from 6006", help="0: any.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")] = "localhost",
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make the view anew of metrics.jsonl and samples/, in tensorboard-rebuilt/."),
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Make it anew with every statistic and step of the layers that match this shell pattern, such as "
            "'up_blocks.0.*'; may be given again."
        ),
    ] = None,
) -> None:
    """Serve a run in TensorBoard until Ctrl-C: layers by block, charts, heat maps, light sweeps, incidents."""
    from shadowlab.reporter import Reporter
    from shadowlab.views.serve import run_tensorboard

    run_tensorboard(run, Reporter(), port=port, host=host, rebuild=rebuild, layers=layers or [])
