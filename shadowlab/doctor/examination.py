"""The whole examination, in the order in which one thing rests on another."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shadowlab.doctor.item import Item
from shadowlab.doctor.machine import compiler, devices, disk, memory, threads
from shadowlab.doctor.packages import packages
from shadowlab.settings import Config


@dataclass(frozen=True)
class Examination:
    """Everything that was looked at."""

    items: tuple[Item, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing failed; notes do not count."""
        return all(item.state != "failed" for item in self.items)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "items": [item.to_json() for item in self.items],
            "seconds": round(self.seconds, 1),
        }


def examine(
    config: Config,
    *,
    self_test: bool = True,
    on_item: Callable[[Item], None] = lambda _: None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Look at packages, devices, memory, threads and disk, then train the tiny model a little.

    torch is imported on the way: a broken installation is reported like everything else, and ends the examination.

    Args:
        config: whose device, precision, processes and output_dir are looked at.
        self_test: also run the self-test, half a minute on two cores.
        on_item: is handed each item as soon as it is known.
        on_wait: is told what comes next, where that takes longer than a moment.
    """
    started, items = time.monotonic(), []
    for item in _items(config, self_test=self_test, on_wait=on_wait):
        items.append(item)
        on_item(item)
    return Examination(tuple(items), time.monotonic() - started)


def _items(config: Config, *, self_test: bool, on_wait: Callable[[str], None]) -> Iterator[Item]:
    sound = True
    on_wait("importing the packages ...")
    for item in packages():
        sound = sound and item.state != "failed"
        yield item
    if not sound:
        yield Item("self-test", "note", "not tried, nor the machine looked at: packages come first")
        return
    for topic in (devices(config), memory(), threads(), compiler(), disk(config)):
        for item in topic:
            sound = sound and item.state != "failed"
            yield item
    if not self_test:
        return
    if not sound:
        yield Item("self-test", "note", "not tried: fix what failed above first")
        return
    on_wait("training the tiny model a little: half a minute on two cores; --no-self-test leaves it out ...")
    from shadowlab.doctor.self_test import self_test as parts

    yield from parts(config.device)
