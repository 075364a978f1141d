"""Whether what an index says can be: whoever reads columns then needs to ask no more."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diagnostics.records.columns import CELLS, FLAGS, OFFSETS, Block, Gathered, KindColumns

CODES = {"d": 8, "q": 8, "i": 4}
"""Type codes of arrays with the bytes of a number."""


def check(known: Gathered, blocks: Sequence[Block]) -> None:
    """Raises ValueError, or another error of a wrong type, where blocks, arrays and what is known do not agree."""
    _require(bool(blocks) and blocks[0].first == 0 and blocks[0].begin == 0)
    _require(all(a.first + a.records == b.first and a.end == b.begin for a, b in pairwise(blocks)))
    _require(known.records == blocks[-1].first + blocks[-1].records)
    for texts in (known.kinds, known.training, *known.layouts):
        _require(all(isinstance(text, str) for text in texts) and len(set(texts)) == len(texts))
    _require(all(0 <= int(number) < known.records for number in known.headers))
    _require(known.last_stage is None or 0 <= int(known.last_stage) < known.records)
    _require(known.last_training is None or known.last_training in known.kinds)
    _require(set(known.kinds) == {own.kind for block in blocks for own in block.kinds})
    for block in blocks:
        _check_block(block, known)


def _check_block(block: Block, known: Gathered) -> None:
    places = block.read(OFFSETS)
    _require(len(places) == block.records > 0 and int(places[0]) == block.begin)
    _require(_ascends(places) and int(places[-1]) < block.end)
    _require(len({own.kind for own in block.kinds}) == len(block.kinds))
    expected = {OFFSETS}
    for number, own in enumerate(block.kinds):
        for name, code in _arrays_of(number, own, block):
            _require(block.arrays.codes.get(name) == code)
            expected.add(name)
        _check_rows(number, own, block, known)
    _require(set(block.arrays.codes) == expected)


def _arrays_of(number: int, own: KindColumns, block: Block) -> Iterator[tuple[str, str]]:
    """Names of the arrays that a kind has, with their types."""
    yield from ((f"{number}/step", "q"), (f"{number}/place", "i"), *((f"{number}/{flag}", "i") for flag in FLAGS))
    if f"{number}/drawn" in block.arrays.codes:
        yield from ((f"{number}/drawn", "i"), (f"{number}/sample", "i"))
    for name, keys in (("number", own.numbers), ("inner", own.inner)):
        _require(all(isinstance(key, str) for key in own.numbers) and len({str(key) for key in keys}) == len(keys))
        for place in range(len(keys)):
            yield f"{number}/{name}/{place}", "d"
            if f"{number}/{name}/{place}/row" in block.arrays.codes:
                yield f"{number}/{name}/{place}/row", "i"
    for part, cells in CELLS.items():
        for group in range(len(getattr(own, part))):
            yield f"{number}/{part}/{group}/row", "i"
            for cell in range(len(cells)):
                yield f"{number}/{part}/{group}/{cell}", "d"


def _check_rows(number: int, own: KindColumns, block: Block, known: Gathered) -> None:
    steps, places = block.read(f"{number}/step"), block.read(f"{number}/place")
    _require(isinstance(own.kind, str) and len(steps) == len(places) == own.rows > 0)
    _require(_ascends(places, block.records))
    _require(all(_ascends(block.read(f"{number}/{flag}"), own.rows) for flag in FLAGS))
    if f"{number}/drawn" in block.arrays.codes:
        drawn, samples = block.read(f"{number}/drawn"), block.read(f"{number}/sample")
        _require(len(drawn) == own.rows and int(drawn.min()) >= 0 and int(drawn.sum()) == len(samples) > 0)
        _require(int(samples.min()) >= 0 and int(samples.max()) < len(known.samples))
    for name, keys in (("number", own.numbers), ("inner", own.inner)):
        for place in range(len(keys)):
            array = f"{number}/{name}/{place}"
            rows = block.read(f"{array}/row") if f"{array}/row" in block.arrays.codes else torch.arange(own.rows)
            _require(_ascends(rows, own.rows) and len(block.read(array)) == len(rows) > 0)
    for part, cells in CELLS.items():
        layouts = getattr(own, part)
        _require(len(set(layouts)) == len(layouts))
        for group, layout in enumerate(layouts):
            _require(isinstance(layout, int) and 0 <= layout < len(known.layouts))
            rows = block.read(f"{number}/{part}/{group}/row")
            _require(len(rows) > 0 and _ascends(rows, own.rows))
            for cell in range(len(cells)):
                values = block.read(f"{number}/{part}/{group}/{cell}")
                _require(len(values) == len(rows) * len(known.layouts[layout]))


def _ascends(rows: Tensor, end: int | None = None) -> bool:
    """Strictly, from 0 at least, below `end`."""
    if not len(rows):
        return True
    inside = int(rows[0]) >= 0 and (end is None or int(rows[-1]) < end)
    return inside and bool((rows[1:] > rows[:-1]).all())


def _require(is_so: bool) -> None:
    if not is_so:
        raise ValueError("not an index of these records")
