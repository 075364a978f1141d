"""One fault of the corpus: how to build it, where it comes from, and what the right verdict says."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

ORIGIN = "# origin"  # marks the line whose operator is the origin; for a backward operator, its forward call


@dataclass
class Scene:
    """One training step ready to run, once. `step` does forward, backward and what else the case needs."""

    step: Callable[[], Any]
    model: nn.Module | list[nn.Module] | None = None
    optimizer: Any = None
    batch: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Expected:
    """Fields that the verdict must have; `...` (Ellipsis) where the case says nothing of it.

    at_origin: the verdict's source is the line of `build`'s source file that carries the comment `# origin`.
    """

    phase: str
    exception: Any = ...
    cause: Any = ...
    op: Any = ...
    module: Any = ...
    parameter: Any = ...
    samples: Any = ...
    at_origin: bool = False


@dataclass(frozen=True)
class Fault:
    """`expected` is None for a benign case. reference: public source of the real cause (`owner/repo#number` or URL),
    or `synthetic`."""

    name: str
    reference: str
    build: Callable[[], Scene]
    expected: Expected | None
    tags: tuple[str, ...] = field(default=())

    @property
    def origin(self) -> str | None:
        """`path:line` of the origin's line, where the case marks one."""
        lines, first = inspect.getsourcelines(self.build)
        marked = [first + i for i, line in enumerate(lines) if ORIGIN in line]
        if len(marked) > 1:
            raise ValueError(f"{self.name}: {len(marked)} lines are marked {ORIGIN!r}; mark one")
        return f"{inspect.getsourcefile(self.build)}:{marked[0]}" if marked else None
