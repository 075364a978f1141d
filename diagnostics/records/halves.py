"""A long file read by two processes: the second half by a child that is forked for it, in half of the time."""

import gc
import json
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from diagnostics.records.columns import Block, Gathered, Gatherer
from diagnostics.records.index import ArrayFile, StoredArrays, described, kinds_of
from diagnostics.records.lines import open_records

WORTHWHILE_BYTES = 2**27
"""Bytes to read from which on a second process gains more than it costs."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Python does not look for cycles: records have none, and are so many objects that it would look all the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class SecondHalf:
    """A child that reads from the middle of a file to its end.

    Args:
        gatherer: what the first lines, with the header, said; at the end of a block.
        folder: where the child's arrays go.
        read: reads its lines into a gatherer, from a file of its own; returns where the last one ends, or None.
    """

    def __init__(self, gatherer: Gatherer, folder: Path, read: Callable[[Gatherer], int | None]) -> None:
        known = gatherer.known
        self._records, self._layouts = known.records, len(known.layouts)
        self._headers, self._samples = len(known.headers), len(known.samples)
        self._training = set(known.training)
        self._arrays = ArrayFile(folder)
        self._arrays.file()
        self._answers, answering = socket.socketpair()
        with warnings.catch_warnings():
            # The child computes nothing with torch: threads of the parent that it lacks are none of its business.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if not self._pid:
            with suppress(BaseException):  # the parent reads this half itself then, and has the error
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                self._answer(known, read, answering)
            os._exit(0)
        answering.close()

    def _answer(self, known: Gathered, read: Callable[[Gatherer], int | None], answering: socket.socket) -> None:
        known.last_training = known.last_stage = None
        own = Gatherer(known, self._arrays.keep)
        end = read(own)
        if end is None or not self._arrays.is_on_disk:
            return
        blocks = [
            [one.first, one.records, one.begin, one.end, [asdict(kind) for kind in one.kinds], one.arrays.extents]
            for one in own.blocks
            if isinstance(one.arrays, StoredArrays)  # all are: the file of arrays keeps them
        ]
        answer = {"known": described(known), "samples": known.samples[self._samples :], "blocks": blocks, "end": end}
        answering.sendall(json.dumps(answer).encode("ascii"))

    def stop(self) -> None:
        """It is not needed any more."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._answers.close()
        os.waitpid(self._pid, 0)

    def add_to(self, gatherer: Gatherer) -> int | None:
        """Add what it found to what the first half said. Returns where the last line ends; None where it is to be read
        here: the child was ended, a line is damaged or cut, or the first half says in the middle what trains."""
        known = gatherer.known
        content = b"".join(iter(lambda: self._answers.recv(2**20), b""))
        self._answers.close()
        os.waitpid(self._pid, 0)
        if not content or set(known.training) != self._training:
            return None
        answer = json.loads(content)
        child = Gathered(**answer["known"])
        shift = known.records - self._records
        layouts = [*range(self._layouts), *(known.layout(tuple(names)) for names in child.layouts[self._layouts :])]
        samples = [*range(self._samples)]
        for name in answer["samples"]:
            samples += known.sample_numbers([name])
        for first, records, begin, end, kinds, extents in answer["blocks"]:
            own = kinds_of(kinds)
            for kind in own:
                kind.layers = [layouts[number] for number in kind.layers]
                kind.parameters = [layouts[number] for number in kind.parameters]
            arrays = self._arrays.kept_by_child({name: tuple(place) for name, place in extents.items()}, samples)
            gatherer.blocks.append(Block(first + shift, records, own, arrays, begin, end))
        known.records += child.records - self._records
        known.headers += [number + shift for number in child.headers[self._headers :]]
        known.kinds += [kind for kind in child.kinds if kind not in known.kinds]
        known.training += [kind for kind in child.training if kind not in known.training]
        if child.last_training is not None:
            known.last_training, known.last_stage = child.last_training, None
        if child.last_stage is not None:
            known.last_stage = child.last_stage + shift
        gatherer.go_on()
        return int(answer["end"])


def middle_of(path: Path, begin: int, end: int) -> int | None:
    """Byte at which a line begins, in the middle of these bytes; None where two processes gain nothing."""
    if end - begin < WORTHWHILE_BYTES or not hasattr(os, "fork") or len(os.sched_getaffinity(0)) < 2:
        return None
    with open_records(path) as file:
        file.seek((begin + end) // 2)
        file.readline()
        place = file.tell()
    return place if place < end else None
