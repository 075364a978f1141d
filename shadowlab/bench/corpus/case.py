"""One fault of the corpus: how to build it, where it comes from, and what the right verdict says."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

ORIGIN = "# origin"  # marks the line whose operator is the origin; for a backward operator, its forward call


@dataclass
class Scene:
    """One training step that is ready to run, once. What it is made of is what `diagnostics.explain` takes."""

    step: Callable[[], Any]
    """Forward, backward and what else the case needs; may return the loss."""
    model: nn.Module | list[nn.Module] | None = None
    optimizer: Any = None
    batch: Mapping[str, Any] | None = None
    """Tensors (B, ...) by name, and ids."""
    before: Sequence[Callable[[], Any]] = ()
    """Healthy steps of the same loop that come first: micro-batches of an accumulation, earlier updates."""
    between: Callable[[], Any] | None = None
    """What the loop does after each step outside of what is watched, such as the optimizer's step."""
    watch: Mapping[str, Any] = field(default_factory=dict)
    """Options of `Watch` with which a loop of this kind is watched."""
    raises: type[BaseException] | None = None
    """What the step itself ends with."""

    @property
    def models(self) -> list[nn.Module]:
        """All of `model`."""
        if self.model is None:
            return []
        return [self.model] if isinstance(self.model, nn.Module) else list(self.model)

    def start(self) -> "Scene":
        """Run all that comes before the step, without any tool; returns itself."""
        for earlier in self.before:
            earlier()
            if self.between is not None:
                self.between()
        return self


@dataclass(frozen=True)
class Expected:
    """Fields that the verdict must have; `...` (Ellipsis) where the case says nothing about one."""

    phase: Any
    exception: Any = ...
    cause: Any = ...
    op: Any = ...
    module: Any = ...
    parameter: Any = ...
    samples: Any = ...
    sample_ids: Any = ...
    says: tuple[str, ...] = ()
    """What the verdict's text must contain, such as an operand's name; letters of any case."""
    at_origin: bool = False
    """The verdict's source is the line of the case's function that carries the comment `# origin`."""


@dataclass(frozen=True)
class Fault:
    """A step that goes wrong in a known way, or a benign one that only looks as if it did."""

    name: str
    reference: str
    """Public source of the real cause (`owner/repo#number` or a URL), or `synthetic`."""
    build: Callable[[], Scene]
    """A new scene at each call, the same bits each time."""
    expected: Expected | None
    """None for a benign case: the right answer is no verdict."""
    tags: tuple[str, ...] = field(default=())
    watched: Any = ...
    """What is right under `Watch`: an `Expected`, or None where it says nothing; Ellipsis where it is `expected`."""
    is_restored: bool = True
    """Whether a watch can put back all that the step wrote."""

    @property
    def expected_watched(self) -> Expected | None:
        """What is right under `Watch`."""
        return self.expected if self.watched is ... else cast("Expected | None", self.watched)

    @property
    def origin(self) -> str | None:
        """`path:line` of the origin's line, where the case marks one."""
        lines, first = inspect.getsourcelines(self.build)
        marked = [first + i for i, line in enumerate(lines) if ORIGIN in line]
        if len(marked) > 1:
            raise ValueError(f"{self.name}: {len(marked)} lines are marked {ORIGIN!r}; mark one")
        return f"{inspect.getsourcefile(self.build)}:{marked[0]}" if marked else None
