"""A page on which a light is moved."""

from typing import Annotated

import typer

from cli.options import Device, Place, Weights


def demo(
    place: Place,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Of 127.0.0.1.", show_default="the first free one from 7860")
    ] = None,
    opens_browser: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    weights: Weights = "ema",
    device: Device = None,
) -> None:
    """Serve a page on this machine: drop an object, move the light, see its shadow at once.

    Needs gradio: pip install 'shadowlab[demo]'. Nothing leaves this machine.

    Example:
    shadowlab demo latest
    shadowlab demo runs/first --port 8000 --open
    """
    from shadowlab.console import Reporter
    from shadowlab.demo import run_demo

    run_demo(place, Reporter(), port=port, device=device, weights=weights, opens_browser=opens_browser)
