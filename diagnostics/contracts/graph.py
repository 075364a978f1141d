"""The loss: its terms, and what they are computed from."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step
from diagnostics.contracts.sums import constant_in
from diagnostics.patching import own_frames, variables_of

_FIRST_STEPS = 3
_STEPS = 2
_CLOSE = 1e-4  # relative: rounding of a sum
_ROUNDING, _SMALL, _VARIES = 2e-6, 1e-3, 0.02  # of the loss; of it; of a variable from step to step
_MOST_NODES = 200_000
_IS_LOSS = re.compile(r"(^|[^a-z])(loss|losses|kl|kld|reg|regularizer|penalty)([^a-z]|$)")


class Terms(Family):
    """Each term of the loss that the step returns is differentiated. Looked at in the first steps and where due."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_looks = 0
        self._looks = False
        self._roots: list[Tensor] = []
        self._nodes: set[Any] = set()
        self._counts: dict[str, int] = {}
        self._ratios: dict[str, tuple[float, float]] = {}  # variable -> its last value, and the constant part over it

    def begin(self, step: Step) -> None:
        self._looks = step.is_due or self._num_looks < _FIRST_STEPS
        self._roots, self._nodes = [], set()

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        if self._looks:
            self._roots += [root.detach() for root in roots if root.numel() == 1]
            self._nodes |= _nodes_below([root.grad_fn for root in roots])
            if len(roots) == 1 and roots[0].numel() == 1:
                self._look_at_variables(step, roots[0])

    def _look_at_variables(self, step: Step, root: Tensor) -> None:
        """Variables of the loop that are named as losses, have no graph, and follow what is constant in the loss."""
        frame = next(own_frames(), None)
        variables = {} if frame is None else variables_of(frame)
        named = {name: value for name, value in variables.items() if _IS_LOSS.search(name.lower())}
        values = {name: value for name, value in named.items() if _is_without_graph(value)}
        constant = constant_in(root, variables) if values else None
        size = abs(float(root.detach())) if constant is not None else 0.0
        if constant is None or abs(constant) < _SMALL * size:
            self._ratios = {}
            return
        before, self._ratios = self._ratios, {}
        for name, value in values.items():
            number = float(value)
            if number == 0 or not math.isfinite(number):
                continue
            self._ratios[name] = number, constant / number
            last, ratio = before.get(name, (number, 0.0))
            off = abs(constant - ratio * number)
            if abs(number - last) > _VARIES * abs(last) and off <= _CLOSE * abs(constant) + _ROUNDING * size:
                self._report(step, name, "constant")

    def end(self, step: Step) -> None:
        roots, nodes, self._roots, self._nodes = self._roots, self._nodes, [], set()
        self._num_looks += bool(self._looks and nodes)
        if not self._looks or not roots:
            return
        terms = dict(_scalars(step.result))
        if len(terms) < 2:
            return
        constant = self._constant_term(terms, roots)
        unused = next((n for n, t in terms.items() if t.grad_fn is not None and t.grad_fn not in nodes), None)
        if unused is not None and not _IS_LOSS.search(unused.lower()):
            unused = None
        for name, kind in ((constant, "constant"), (unused, "unused")):
            key = f"{kind} {name}"
            self._counts = {k: v for k, v in self._counts.items() if not k.startswith(kind) or k == key}
            if name is None:
                continue
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] >= _STEPS:
                self._report(step, name, kind)

    def forget(self) -> None:
        """A graph keeps what it saved."""
        self._roots, self._nodes = [], set()

    def detach(self) -> None:
        self.forget()

    def _report(self, step: Step, name: str, kind: str) -> None:
        if kind == "constant":
            evidence = "it is added to the loss that is differentiated, and has no graph: a constant for the optimizer"
            is_frozen = any(not p.requires_grad for p in self.scene.parameters().values())  # it may be of that part
            severity = "warning" if is_frozen else "alarm"
            self.broken("loss-term-without-gradient", step, evidence, subject=name, severity=severity)
        else:
            evidence = "the step returns it with a graph, and no backward starts from it or passes it"
            self.broken("loss-term-without-gradient", step, evidence, subject=name, severity="warning")

    def _constant_term(self, terms: dict[str, Tensor], roots: list[Tensor]) -> str | None:
        """The name of a term without graph that is part of the sum, while another term has one."""
        total = float(roots[-1])
        values = {name: float(term.detach()) for name, term in terms.items()}
        is_total = [n for n, v in values.items() if _is_close(v, total)]
        parts = [n for n in terms if n not in is_total]
        without = [n for n in parts if not terms[n].requires_grad and values[n] != 0]
        with_graph = [n for n in parts if terms[n].requires_grad]
        if not without or not with_graph:
            return None
        for name in without:
            if _is_close(values[name] + sum(values[n] for n in with_graph), total):
                return name
        return None


def _is_without_graph(value: Any) -> bool:
    """Whether it is a number, or a tensor () that nothing can be differentiated through."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point() and not value.requires_grad
    return isinstance(value, float)


def _is_close(value: float, other: float) -> bool:
    return math.isfinite(value) and abs(value - other) <= _CLOSE * max(abs(value), abs(other))


def _scalars(result: Any) -> Iterator[tuple[str, Tensor]]:
    """Named floating scalars of what a step returned, one level deep."""
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        items = list(zip(result._fields, result, strict=True))
    elif isinstance(result, Sequence) and not isinstance(result, (str, bytes)):
        items = [(f"result {number}", value) for number, value in enumerate(result)]
    else:
        items = [(key, value) for key, value in vars(result).items()] if hasattr(result, "__dataclass_fields__") else []
    for name, value in items:
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
            yield name, value


def _nodes_below(roots: list[Any]) -> set[Any]:
    """All nodes of the graph that backward from these passes."""
    seen: set[Any] = set()
    ahead = [node for node in roots if node is not None]
    while ahead and len(seen) < _MOST_NODES:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        ahead.extend(child for child, _ in node.next_functions if child is not None and child not in seen)
    return seen
