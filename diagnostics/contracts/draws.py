"""torch's generator between steps: put back to where it was, it draws the same noise and times again."""

import zlib

import torch

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step

_MOST = 4096  # states


def random_state() -> int:
    """Stands for the states of torch's own generators, of the CPU and of the current accelerator."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return zlib.crc32(b"".join(state.numpy().tobytes() for state in states))


class Draws(Family):
    """Follows the states in which steps begin that draw."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._known: dict[int, int] = {}  # state -> the step that began with it, and drew
        self._state = 0

    def begin(self, step: Step) -> None:
        self._state = random_state()

    def end(self, step: Step) -> None:
        if len(self._known) >= _MOST or random_state() == self._state:
            return
        before = self._known.get(self._state)
        self._known[self._state] = step.index
        if before is not None and before != step.index:
            evidence = (
                f"torch's generator began this step as it began step {before}, and the step draws from it: noise,"
            )
            evidence += " times and dropout are the same"
            advice = (
                "draw what must be the same from a torch.Generator of its own; torch.manual_seed() rewinds everybody"
            )
            where = "random numbers: torch.manual_seed"
            self.broken("batch-repeats", step, evidence, subject=where, severity="warning", advice=advice)
