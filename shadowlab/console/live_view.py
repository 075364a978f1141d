"""The live view of a running stage on a terminal: progress, recent curves, the last numbers."""

import math
from collections.abc import Iterator, Mapping

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from shadowlab.console.sparklines import sparkline

CURVES = ("loss", "grad norm")
_RECENT = 256  # steps that a curve shows
_MAX_WIDTH = 100  # columns
_BORDER = 4  # columns that the panel's frame and padding take
_BAD, _NAME = "bold red", "dim"


class LiveView:
    """A panel at the bottom of the terminal; what is printed meanwhile appears above it. Without any numbers, a bar.

    Args:
        console: interactive.
        total: how many steps there are.
        done: how many of them were done before.
        noun: what is counted.
        owns_stdout: False where stdout carries a document, which must not be drawn around.
    """

    def __init__(
        self, console: Console, title: str, total: int, done: int = 0, *, noun: str = "step", owns_stdout: bool = True
    ) -> None:
        self._title = title
        self._progress = Progress(
            TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
            auto_refresh=False,
        )
        self._task = self._progress.add_task(noun, total=total, completed=done)
        # Replaced as wholes, never changed: another thread draws them.
        self._numbers: dict[str, float | str] = {}
        self._curves: dict[str, tuple[float, ...]] = {}
        self._notice = ""
        self._live = Live(self, console=console, redirect_stdout=owns_stdout)

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self) -> None:
        """The panel stays on the screen as it is now."""
        self._live.stop()

    def update(self, step: int, total: int, numbers: Mapping[str, float | str]) -> None:
        """Show `step` of `total`. Numbers named in `CURVES` get a line with their recent course."""
        self._progress.update(self._task, completed=step, total=total)
        recent = {name: numbers[name] for name in CURVES if name in numbers}
        self._curves |= {name: (*self._curves.get(name, ()), float(value))[-_RECENT:] for name, value in recent.items()}
        self._numbers = dict(numbers)

    def notice(self, text: str) -> None:
        """A line at the end of the panel from the next drawing on. Sets one attribute: safe in a signal handler."""
        self._notice = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        outer = min(options.max_width, _MAX_WIDTH)
        width = max(1, outer - _BORDER)
        lines = [*self._curve_lines(width, options.ascii_only), *self._other_lines(console, width)]
        if self._notice:
            lines += Text(self._notice, style="bold yellow").wrap(console, width, no_wrap=False, overflow="fold")
        bar = self._progress.get_renderable()
        if lines:
            yield Panel(Group(bar, *lines), title=self._title, title_align="left", width=outer, padding=(0, 1))
        else:
            yield bar

    def _curve_lines(self, width: int, ascii_only: bool) -> Iterator[Text]:
        numbers = self._numbers
        for name in CURVES:
            if name in numbers:
                line = Text.assemble((f"{name:<9}", _NAME), "  ", _value(numbers[name], pad=9), "  ")
                course = sparkline(self._curves[name], width - line.cell_len, ascii_only=ascii_only)
                yield line.append(course, style="cyan")

    def _other_lines(self, console: Console, width: int) -> Iterator[Text]:
        """As many numbers on a line as fit; what is longer than a line is folded."""
        line = Text()
        for name, value in self._numbers.items():
            if name in CURVES:
                continue
            cell = Text.assemble((name, _NAME), " ", _value(value))
            if line and line.cell_len + 2 + cell.cell_len > width:
                yield line
                line = Text()
            line = Text("  ").join([line, cell]) if line else cell
            if line.cell_len > width:
                *whole, line = line.wrap(console, width, no_wrap=False, overflow="fold")
                yield from whole
        if line:
            yield line


def shown(value: float | str) -> str:
    """As lines and panels print a number: 4 significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _value(value: float | str, pad: int = 0) -> tuple[str, str]:
    """Text and style; what is not finite stands out."""
    bad = not isinstance(value, str) and not math.isfinite(value)
    return f"{shown(value):<{pad}}", _BAD if bad else ""
