"""A map of layers by steps as a picture: colour for the value, names at the side, steps below, a bar of numbers.

Palette pictures: 64 colours for values, 16 greys for text, one colour each for what is not finite, zero, and absent.
A page of 72 rows takes some 20 KB as PNG.
"""

import io
import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diagnostics.records import LayerTable
from shadowlab.drawing import NOT_FINITE_COLOUR
from shadowlab.views.charts import LayerMap
from shadowlab.views.layer_map import blocks

# Dark to bright, so that order survives a grey print and red-green blindness.
_ANCHORS = ((24, 16, 72), (38, 70, 140), (24, 128, 142), (72, 176, 96), (190, 206, 50), (254, 236, 120))
_NUM_COLOURS, _NUM_GREYS = 64, 16
_GREYS = _NUM_COLOURS  # first of them, black; the last is white
_NOT_FINITE, _ZERO, _ABSENT = _GREYS + _NUM_GREYS, _GREYS + _NUM_GREYS + 1, _GREYS + _NUM_GREYS + 2
_SPECIAL = {_NOT_FINITE: NOT_FINITE_COLOUR, _ZERO: (0, 0, 0), _ABSENT: (222, 222, 222)}

_PLOT_WIDTH, _MAX_CELL_WIDTH = 640, 48
_ROW, _FONT, _TITLE_FONT = 12, 11, 14  # pixels; a name of 11 pixels is legible, and a row just holds it
_PLOT_HEIGHT = 864
MAX_NAMED_ROWS = _PLOT_HEIGHT // _ROW  # 72: a picture of about 1000 x 1000, which a screen shows without scaling
_TOP, _BOTTOM, _RIGHT, _GAP = 26, 40, 130, 6
_BAR = 130  # height of the bar of colours
_LEAST_WIDTH, _LEAST_HEIGHT = 280, 200  # of the plot's place: title and bar have to fit

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_heat_map(
    table: LayerTable, scale: LayerMap, *, named: bool = True, ends: tuple[float, float] | None = None
) -> Image.Image:
    """One row a layer, one column a step.

    Args:
        table: may be empty.
        scale: what it is of, and how values become colours.
        named: every row has its name, 12 pixels high; else blocks have theirs and rows are as high as fits, 1 pixel at
            least.
        ends: of the colours, where this is a page of a larger table whose `colour_ends` they are.
    """
    num_rows, num_columns = table.values.shape
    row = _ROW if named else max(1, min(_ROW, _PLOT_HEIGHT // max(1, num_rows)))
    cell = max(1, min(_MAX_CELL_WIDTH, _PLOT_WIDTH // max(1, num_columns)))
    width, height = cell * num_columns, row * num_rows
    font, title_font = ImageFont.load_default(_FONT), ImageFont.load_default(_TITLE_FONT)
    labels = _labels(table.names, row, named)
    left = labels.width
    size = (left + max(width, _LEAST_WIDTH) + _RIGHT, _TOP + max(height, _LEAST_HEIGHT) + _BOTTOM)
    words = Image.new("L", size, 255)
    draw = ImageDraw.Draw(words)
    draw.text((left, 4), _title(scale), fill=0, font=title_font)
    words.paste(labels, (0, _TOP))
    _draw_steps(draw, table.steps, font, left, _TOP + height, cell)
    low, high = colour_ends(table, scale) if ends is None else ends
    bar = left + max(width, _LEAST_WIDTH) + 16
    patches = _draw_bar_words(draw, font, bar, scale, low, high)
    cells = _indices(table, scale, low, high)
    picture = words.point(lambda grey: _GREYS + grey * (_NUM_GREYS - 1) // 255).convert("P")
    picture.putpalette(_palette())
    if num_rows and num_columns:
        plot = Image.frombytes("P", (num_columns, num_rows), bytes(cells.flatten().tolist()))
        picture.paste(plot.resize((width, height), Image.Resampling.NEAREST), (left, _TOP))
        _draw_boundaries(picture, table.names, left, width, row)
    _draw_bar(picture, bar, scale, patches)
    return picture


def to_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _title(scale: LayerMap) -> str:
    unit = f" in {scale.unit}" if scale.unit else ""
    return f"{scale.title.lower()}{unit}, layers by steps{' (log10 colours)' if scale.is_log else ''}"


def colour_ends(table: LayerTable, scale: LayerMap) -> tuple[float, float]:
    """Values at the ends of the colours, as log10 where the scale is; equal where all are, 0 and 0 where none is.

    The brightest hundredth of the finite values and the darkest twentieth lie beyond them: one explosion, or a few
    layers that get next to nothing, must not flatten all the rest.
    """
    values = table.values[table.present & table.values.isfinite()]
    if scale.is_log:
        values = values[values > 0].log10()
    if not len(values):
        return 0.0, 0.0
    ordered = values.sort().values
    shares = (0.01, 0.95) if scale.low_is_worse else (0.05, 0.99)
    ends = [ordered[round(share * (len(ordered) - 1))].item() for share in shares]
    return ends[0], ends[1]


def _indices(table: LayerTable, scale: LayerMap, low: float, high: float) -> Tensor:
    """(rows, columns) of palette indices."""
    values = table.values.log10() if scale.is_log else table.values
    share = ((values - low) / (high - low or 1.0)).nan_to_num(0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    if scale.low_is_worse:
        share = 1 - share
    index = (share * (_NUM_COLOURS - 1)).round().long()
    bad = ~table.values.isfinite()
    if scale.low_is_worse:  # infinite headroom: all is zero
        bad &= table.values != math.inf
        index[table.values == math.inf] = _ZERO
    if scale.is_log:
        index[table.values == 0] = _ZERO
    index[bad] = _NOT_FINITE
    index[~table.present] = _ABSENT
    return index


@lru_cache(maxsize=32)  # a run draws the same names again and again, and text is the slowest part
def _labels(names: tuple[str, ...], row: int, named: bool) -> Image.Image:
    """Names with a line to the middle of what they name, as grey levels."""
    font = ImageFont.load_default(_FONT)
    labels = _row_labels(names, row) if named else _block_labels(names, row)
    width = 2 * _GAP + 4 + max((int(font.getlength(text)) for text, _, _ in labels), default=0)
    strip = Image.new("L", (width, max(len(names) * row, _LEAST_HEIGHT)), 255)
    draw = ImageDraw.Draw(strip)
    for text, wanted, y in labels:
        draw.text((width - _GAP - 4, y), text, fill=0, font=font, anchor="rm")
        draw.line((width - _GAP - 2, y, width - 2, wanted), fill=120)
    return strip


def _row_labels(names: Sequence[str], row: int) -> list[tuple[str, int, int]]:
    """(text, height of what it names, its own height), both at the middle."""
    return [(name, i * row + row // 2, i * row + row // 2) for i, name in enumerate(names)]


def _block_labels(names: Sequence[str], row: int) -> list[tuple[str, int, int]]:
    """Blocks of few rows push the names of the next ones down, and the last ones up where the picture ends."""
    runs = blocks(names)
    wanted = [(2 * first + number) * row // 2 for _, first, number in runs]
    own: list[int] = []
    for y in wanted:
        own.append(max(y, own[-1] + _ROW) if own else max(y, _ROW // 2))
    limit = max(len(names) * row, _LEAST_HEIGHT) - _ROW // 2
    for i in range(len(own) - 1, -1, -1):
        own[i] = min(own[i], limit - (len(own) - 1 - i) * _ROW)
    return [(block, y, at) for (block, _, _), y, at in zip(runs, wanted, own, strict=True)]


def _draw_boundaries(picture: Image.Image, names: Sequence[str], left: int, width: int, row: int) -> None:
    draw = ImageDraw.Draw(picture)
    white = _GREYS + _NUM_GREYS - 1
    for _, first, number in blocks(names):
        if first and number * row > 3:  # a line over a block of a pixel or two would hide it
            draw.line((left, _TOP + first * row, left + width - 1, _TOP + first * row), fill=white)


def _draw_steps(draw: ImageDraw.ImageDraw, steps: Sequence[int], font: _Font, left: int, y: int, cell: int) -> None:
    """As many numbers as have room, the first and the last among them."""
    if not steps:
        draw.text((left, _TOP), "no step has statistics of layers yet", fill=0, font=font)
        return
    room = int(max(font.getlength(str(step)) for step in (steps[0], steps[-1]))) + 12
    every = max(1, math.ceil(room / cell))
    last = len(steps) - 1
    shown = [i for i in range(0, last, every) if last - i >= every] + [last]
    for i in shown:
        x = left + i * cell + cell // 2
        draw.line((x, y + 1, x, y + 5), fill=0)
        draw.text((x, y + 7), str(steps[i]), fill=0, font=font, anchor="mt")
    draw.text((left, y + 22), "step", fill=0, font=font)


def _draw_bar_words(
    draw: ImageDraw.ImageDraw, font: _Font, x: int, scale: LayerMap, low: float, high: float
) -> dict[int, tuple[int, int]]:
    """Returns where the patch of each special colour goes."""
    for i in range(5):
        value = low + (high - low) * (1 - i / 4)
        edge = {0: "> ", 4: "< "}.get(i, "")
        text = f"{edge}{10**value if scale.is_log else value:.3g}"
        draw.text((x + 18, _TOP + i * (_BAR - 1) // 4), text, fill=0, font=font, anchor="lm")
    names = {_NOT_FINITE: "NaN or Inf", _ABSENT: scale.absent}
    if scale.is_log or scale.low_is_worse:
        names[_ZERO] = "zero" if scale.is_log else "all zero"
    places = {index: (x, _TOP + _BAR + 14 + i * 16) for i, index in enumerate(names)}
    for index, (_, y) in places.items():
        draw.text((x + 18, y + 6), names[index], fill=0, font=font, anchor="lm")
    return places


def _draw_bar(picture: Image.Image, x: int, scale: LayerMap, places: dict[int, tuple[int, int]]) -> None:
    draw = ImageDraw.Draw(picture)
    for i in range(_BAR):
        share = 1 - i / (_BAR - 1)
        index = round((1 - share if scale.low_is_worse else share) * (_NUM_COLOURS - 1))
        draw.line((x, _TOP + i, x + 13, _TOP + i), fill=index)
    for index, (left, y) in places.items():
        draw.rectangle((left, y, left + 13, y + 11), fill=index)


def _palette() -> list[int]:
    colours = []
    for i in range(_NUM_COLOURS):
        place = i / (_NUM_COLOURS - 1) * (len(_ANCHORS) - 1)
        first = min(int(place), len(_ANCHORS) - 2)
        share = place - first
        colours += [round(a + (b - a) * share) for a, b in zip(_ANCHORS[first], _ANCHORS[first + 1], strict=True)]
    for i in range(_NUM_GREYS):
        colours += [i * 255 // (_NUM_GREYS - 1)] * 3
    for index in sorted(_SPECIAL):
        colours += _SPECIAL[index]
    return colours
