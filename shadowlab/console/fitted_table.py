"""A table that fits the width it is printed in: without its optional columns, with sentences wrapped, or as cards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2  # columns of the terminal between two of the table
_LEAST = 26  # width to which sentences are wrapped; in less nobody reads them
_INDENT = 2  # of what stands below the head of a card


@dataclass(frozen=True)
class Column:
    """One column."""

    title: str
    is_head: bool = False
    """Whether a card begins with it, without its title."""
    is_right: bool = False
    """Whether it is flush right: numbers."""
    wraps: bool = False
    """Whether it holds sentences, which may be wrapped at words. All else is never broken."""
    is_optional: bool = False
    """Whether it may be left out where there is no room, the last one first; a card has it."""
    style: str = ""
    card_title: str | None = None
    """Before its cell in a card; None for the title."""


class FittedTable:
    """Rows under columns where the width has room for them; else a card for each row, nothing cut.

    Args:
        columns: at least one of them a head.
        title: a line above.
    """

    def __init__(self, columns: Sequence[Column], *, title: str = "") -> None:
        self._columns, self._title = tuple(columns), title
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """One cell a column; texts are printed as they are, brackets too."""
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            yield from _wrapped(Text(self._title, "bold"), console, options.max_width)
        chosen = list(range(len(self._columns)))
        while (widths := self._widths(chosen, options.max_width)) is None:
            droppable = [i for i in chosen if self._columns[i].is_optional]
            if not droppable:
                yield from self._cards(console, options.max_width)
                return
            chosen.remove(droppable[-1])
        yield self._table(chosen, widths)

    def _widths(self, chosen: Sequence[int], room: int) -> list[int] | None:
        """Of the chosen columns, so that all fit; None where they cannot."""
        wanted, least = [], []
        for i in chosen:
            texts = [Text(self._columns[i].title), *(row[i] for row in self._rows)]
            wanted.append(max(cell_len(line) for text in texts for line in text.plain.split("\n")))
            word = max((cell_len(word) for text in texts for word in text.plain.split()), default=0)
            least.append(min(wanted[-1], max(word, _LEAST)) if self._columns[i].wraps else wanted[-1])
        room -= _GAP * (len(chosen) - 1)
        if sum(least) > room:
            return None
        spare, widths = room - sum(least), list(least)
        missing = [want - have for want, have in zip(wanted, least, strict=True)]
        for i, short in enumerate(missing):
            widths[i] += min(short, spare * short // (sum(missing) or 1))
        return widths

    def _table(self, chosen: Sequence[int], widths: Sequence[int]) -> Table:
        is_wrapped = any(
            cell_len(line) > width
            for row in self._rows
            for i, width in zip(chosen, widths, strict=True)
            for line in row[i].plain.split("\n")
        )
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, leading=int(is_wrapped))
        for i, width in zip(chosen, widths, strict=True):
            column = self._columns[i]
            justify = "right" if column.is_right else "left"
            table.add_column(column.title, width=width, justify=justify, overflow="fold", style=column.style)  # type: ignore[arg-type]
        for row in self._rows:
            table.add_row(*(row[i] for i in chosen))
        return table

    def _cards(self, console: Console, width: int) -> Iterator[Text]:
        has_sentences = any(column.wraps for column in self._columns)
        for number, row in enumerate(self._rows):
            if number and has_sentences:
                yield Text("")
            cells = [(column, cell) for column, cell in zip(self._columns, row, strict=True) if cell.plain]
            heads = [Text.styled(cell.plain, cell.style or "bold") for column, cell in cells if column.is_head]
            yield from _wrapped(Text(" " * _GAP).join(heads), console, width)
            line = Text()
            for column, cell in cells:
                if column.is_head:
                    continue
                title = column.title if column.card_title is None else column.card_title
                named = Text.assemble((f"{title}{':' if column.wraps else ''} " if title else "", "dim"), cell)
                if column.wraps or line.cell_len + _GAP + named.cell_len > width - _INDENT:
                    yield from _wrapped(line, console, width, _INDENT, hang=0)
                    line = Text()
                if column.wraps:
                    yield from _wrapped(named, console, width, _INDENT)
                else:
                    line = Text(" " * _GAP).join([line, named]) if line else named
            yield from _wrapped(line, console, width, _INDENT, hang=0)


def _wrapped(text: Text, console: Console, width: int, indent: int = 0, hang: int = _INDENT) -> Iterator[Text]:
    """Lines of at most `width` columns, broken at words where that is possible; later ones by `hang` further in."""
    if not text:
        return
    lines = text.wrap(console, max(1, width - indent - hang), overflow="fold", no_wrap=False)
    if len(lines) > 1 and text.cell_len <= width - indent and "\n" not in text.plain:
        lines = [text]  # type: ignore[assignment]
    for number, line in enumerate(lines):
        line.rstrip()
        yield Text(" " * (indent + (hang if number else 0))).append_text(line)
