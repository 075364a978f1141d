"""Losses that a gradient scaler has scaled, known again where they are differentiated."""

from typing import Any

from torch import Tensor

_MOST_NODES = 64  # between what is differentiated and what was scaled: a sum, a division


class Scaled:
    """Those of the step that runs. Keeps nodes of their graphs: to be cleared when the step ends."""

    def __init__(self) -> None:
        self._nodes: set[Any] = set()

    def add(self, losses: list[Tensor]) -> None:
        """losses: of any shape, as the scaler returned them."""
        self._nodes |= {loss.grad_fn for loss in losses if loss.grad_fn is not None}

    def clear(self) -> None:
        """Forget them."""
        self._nodes.clear()

    def are_in(self, roots: list[Tensor]) -> bool:
        """Whether any of what is differentiated is one of them, or is computed from one in a few operators."""
        seen: set[Any] = set()
        ahead = [root.grad_fn for root in roots if root.grad_fn is not None] if self._nodes else []
        while ahead and len(seen) < _MOST_NODES:
            node = ahead.pop(0)
            if node in self._nodes:
                return True
            seen.add(node)
            ahead += [child for child, _ in node.next_functions if child is not None and child not in seen]
        return False
