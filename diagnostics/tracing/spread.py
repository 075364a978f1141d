"""Which bad elements of an operator's results do harm, and which earlier events they came from."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.tensors import wide
from diagnostics.tracing.calls import OperatorCall, element
from diagnostics.tracing.nested import leaves, strided_leaves
from diagnostics.tracing.operators import Operator
from diagnostics.tracing.provenance import Shadow, is_legitimate, nodes_in, values_in

_SELECTING = ("where", "masked_fill", "masked_fill_")


@dataclass(slots=True)
class Dispatch:
    """An operator that has just run."""

    op: Operator
    call: OperatorCall
    inputs: list[Tensor]
    """Strided tensors that it read, any shape."""
    shadows: list[Shadow | None]
    """Of the inputs."""
    written: list[Tensor]
    """Strided tensors that it returned or wrote to, any shape."""
    flags: list[bool]
    """Of what was written: whether it holds a NaN or Inf."""

    @property
    def bad_outputs(self) -> Iterator[tuple[int, Tensor]]:
        """(slot, tensor) of what was written and is not finite."""
        for slot, (tensor, flag) in enumerate(zip(self.written, self.flags, strict=True)):
            if flag:
                yield slot, tensor

    @property
    def has_infinite_scalar(self) -> bool:
        """Whether a Python number among the arguments is infinite."""
        flat = leaves((self.call.args, self.call.kwargs))
        return any(isinstance(value, float) and value in (float("inf"), float("-inf")) for value in flat)


@dataclass(slots=True)
class Spread:
    """The bad elements of one output, and the nodes that they came from."""

    bad: Tensor
    """Booleans in the output's shape."""
    harm: Tensor
    """Those that are harmful; `bad` itself where all of them are."""
    has_harm: bool
    harmful: frozenset[int] = frozenset()
    """Nodes that the harmful elements came from."""
    turned: frozenset[int] = frozenset()
    """Nodes of legitimate infinities that they came from, where they have no harmful parent."""
    passed: frozenset[int] = frozenset()
    """Nodes that the legitimate infinities came from."""


def spread_of(dispatch: Dispatch, slot: int, *, constant: bool) -> Spread:
    """What became of an operator's inputs in one of its outputs.

    Args:
        slot: of an output with bad elements.
        constant: an infinite number among the arguments makes legitimate infinities.
    """
    out = wide(dispatch.written[slot])
    bad = ~torch.isfinite(out)
    inputs = _concerned(dispatch, slot)
    is_mask_like = constant or dispatch.op.name in _SELECTING
    if not is_mask_like and not any(is_legitimate(node) for _, shadow in inputs for node in shadow.candidates):
        return Spread(bad, bad, True, frozenset(nodes_in(shadow for _, shadow in inputs)))
    grids = [_selected(dispatch, tensor, shadow.grid) for tensor, shadow in inputs]
    if dispatch.op.is_elementwise and all(_fits(grid, out) for grid in grids):
        harm, at_harm, at_legitimate = _by_element([grid.expand(out.shape) for grid in grids], out, bad, constant)
    else:
        found = _nodes(grids)
        has_harm = any(not is_legitimate(node) for node in found)
        harm = bad & ~(bad & ~torch.isnan(out) & (not has_harm and bool(found or constant)))
        at_harm = at_legitimate = found
    passed = frozenset(node for node in at_legitimate if is_legitimate(node))
    if dispatch.op.is_empty:  # its garbage is nobody's value until it is read
        harm = bad
    if harm is not bad and not bool(harm.any()):
        return Spread(bad, harm, False, passed=passed)
    harmful = frozenset(node for node in at_harm if not is_legitimate(node))
    return Spread(bad, harm, True, harmful, frozenset() if harmful else frozenset(at_harm), passed)


def _by_element(grids: list[Tensor], out: Tensor, bad: Tensor, constant: bool) -> tuple[Tensor, set[int], set[int]]:
    """(harmful elements, nodes at these, nodes at the legitimate ones); every tensor in the output's shape."""
    harm_in = torch.zeros_like(bad)
    legitimate_in = torch.zeros_like(bad)
    for grid in grids:
        harm_in |= (grid > 0) & (grid % 2 == 0)
        legitimate_in |= grid % 2 == 1
    legitimate = bad & ~torch.isnan(out) & ~harm_in & (legitimate_in | constant)
    harm = bad & ~legitimate
    return harm, _nodes([grid[harm] for grid in grids]), _nodes([grid[legitimate] for grid in grids])


def _nodes(grids: list[Tensor]) -> set[int]:
    return {node for grid in grids for node in values_in(grid)} - {0}


def _concerned(dispatch: Dispatch, slot: int) -> list[tuple[Tensor, Shadow]]:
    """(input, shadow) pairs that concern one output: for a foreach operator those of its place in the lists."""
    pairs = [(t, s) for t, s in zip(dispatch.inputs, dispatch.shadows, strict=True) if s is not None]
    if not dispatch.op.is_foreach:
        return pairs
    concerned = {id(t) for t in strided_leaves(element(dispatch.call.args, dispatch.call.kwargs, slot))}
    return [(t, s) for t, s in pairs if id(t) in concerned]


def _selected(dispatch: Dispatch, tensor: Tensor, grid: Tensor) -> Tensor:
    """The nodes of an input without those of elements that the operator does not look at."""
    name, args = dispatch.op.name, dispatch.call.args
    if name == "where" and len(args) == 3:
        condition, chosen, other = args
        if tensor is chosen and tensor is not other:
            return torch.where(condition, grid, 0)
        if tensor is other and tensor is not chosen:
            return torch.where(condition, 0, grid)
    if name in ("masked_fill", "masked_fill_") and tensor is args[0]:
        return torch.where(args[1], 0, grid)
    return grid


def _fits(grid: Tensor, out: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(grid.shape, out.shape) == out.shape)
    except RuntimeError:
        return False
