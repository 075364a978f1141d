"""When a copy is kept of what a step changes: it costs as much memory as the state and one more pass over it."""

from typing import Literal

import torch

from diagnostics.watching.guarded import Guarded
from diagnostics.watching.safety import why_unsafe

When = Literal["auto", "always", "never"]


class Policy:
    """Copies are kept where an optimizer step could make non-finite values of finite gradients, or as is asked for."""

    def __init__(self, when: When, guarded: Guarded) -> None:
        self._when = when
        self._guarded = guarded
        self._learned: str | None = None

    @property
    def allows_copies(self) -> bool:
        """Whether a step may be copied for a reason of its own."""
        return self._when != "never"

    @property
    def reason(self) -> str | None:
        """Why copies are kept of every step, as things are now; None where they are not."""
        if self._when != "auto":
            return "asked for" if self._when == "always" else None
        if not self._guarded.optimizers:
            return "the update is not an optimizer's"
        if len(self._guarded.optimizers) > 1:
            return "a second optimizer steps after the first has changed its parameters"
        if self._guarded.averages:
            return "averages are updated by the loop"
        if any(average.dtype is torch.float16 for average in self._guarded.safe_averages):
            return "averages are float16"
        return self._learned or self.why_unsafe

    @property
    def why_unsafe(self) -> str | None:
        """Why the step of an optimizer could make non-finite values of finite gradients, as things are now."""
        return next(filter(None, map(why_unsafe, self._guarded.optimizers)), None)

    def learn(self, reason: str) -> None:
        """A step has shown why copies are needed."""
        self._learned = reason
