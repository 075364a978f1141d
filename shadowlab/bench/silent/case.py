"""One case of the corpus of silent faults: a loop, where it comes from, and what must be said of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Host = Literal["plain", "accelerate", "lightning", "trainer", "ddp"]
"""Who owns the loop; `ddp`: two processes over gloo."""


class Watching(Protocol):
    """How a loop comes to be watched: by `diagnostics.Watch`, by another tool, or by none."""

    def __call__(self, model: Any, optimizer: Any = None, **options: Any) -> Any:
        """`Watch`, or what has its `step` and `attempts`."""

    def lightning(self) -> list[Any]:
        """Callbacks for Lightning's trainer."""

    def trainer(self) -> Any:
        """The `Trainer` of transformers, or a class that is derived from it."""


Loop = Callable[[Watching], None]


@dataclass(frozen=True)
class Expected:
    """What the right finding says."""

    visible: int
    """Watched step (0-based; a micro-batch counts) in which the fault first does something."""
    rules: tuple[str, ...]
    """Rules that may name it."""
    where: tuple[str, ...] = ()
    """Parameters, layers, inputs or calls, one of which must be named; empty where the case states none."""


@dataclass(frozen=True)
class Case:
    """A training loop with one silent fault, or a healthy one."""

    name: str
    reference: str
    """Public source of the real case, `owner/repo#number` or a URL; of a healthy loop, of the practice."""
    loop: Loop
    """Trains a few steps, a few seconds at most, from the same seed each time."""
    expected: Expected | None = None
    """None for a healthy loop: the right answer is nothing."""
    host: Host = "plain"
    tags: tuple[str, ...] = field(default=())
    held_out: bool = False
    """Written, and kept from the authors of the rules, before the first score."""

    @property
    def healthy(self) -> bool:
        return self.expected is None
