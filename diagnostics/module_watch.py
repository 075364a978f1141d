"""Hooks that follow one forward and backward pass and remember where non-finite values appear.

Forward: a module's output is bad while its inputs were good and no module inside it was to blame. What a parent
computes between its children (a residual add) shows at the next child's input and belongs to the parent.

Backward: every autograd node is assigned to the module in whose call it was made. A node that receives good
gradients and returns a bad one is an origin if the bad gradient reaches a leaf. Nodes see each consumer's share of
a gradient; a hook on a tensor would see only the sum over all consumers of a residual stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from diagnostics.evidence import Evidence, evidence, is_bad, is_harmful, largest_finite
from diagnostics.layers import in_backward, tensors_in
from diagnostics.statistics import dense

Node = Any  # torch.autograd.graph.Node; a Python wrapper keeps its identity as long as it is referenced


@dataclass(frozen=True)
class Owner:
    """A module by its dotted name and class, or what stands in for one (`loss`)."""

    place: str
    kind: str


@dataclass
class Birth:
    """Where non-finite values appeared. `largest_input`: largest finite magnitude that went in, where known."""

    owner: Owner
    evidence: Evidence
    largest_input: float | None
    module: nn.Module | None = None
    is_input: bool = False  # they came into the outermost module
    was_absorbed: bool = False  # some module took them and gave finite values back
    tensor: Tensor | None = None  # kept, so that its storage can be recognised


@dataclass
class _Call:
    owner: Owner
    module: nn.Module
    inputs: list[Tensor]
    has_good_inputs: bool
    first_birth: int  # births from this serial number on happened inside this call


@dataclass
class _BadNode:
    """A node that returned bad gradients. `edges`: to which of its next nodes."""

    node: Node
    edges: list[int]
    is_origin: bool
    produced: list[Evidence]
    received: Evidence | None
    largest_received: float | None


class ModuleWatch:
    """Hooks on every module of `model` and, as graphs grow, on their autograd nodes. `remove` takes all off.

    Args:
        batch_size: first dimension of batched tensors; None takes it from the first tensor that enters a module.
    """

    def __init__(self, model: nn.Module, batch_size: int | None) -> None:
        self._batch_size = batch_size
        self._births: dict[int, Birth] = {}  # by serial number, in the order of time
        self._num_births = 0
        self._calls: list[_Call] = []
        self._owners: dict[Node, Owner] = {}
        self._bad_nodes: list[_BadNode] = []
        self._parameters = {id(parameter): parameter for parameter in model.parameters()}
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            owner = Owner(name or type(model).__name__, type(module).__name__)
            self._handles.append(module.register_forward_pre_hook(partial(self._before, owner), with_kwargs=True))
            # Also on exceptions, by which activation checkpointing leaves a repeated forward.
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True, always_call=True))

    @property
    def batch_size(self) -> int | None:
        return self._batch_size

    def remove(self) -> None:
        """Take off every hook. What was found stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward_birth(self) -> Birth | None:
        """The first birth that no module absorbed, else the first that is left; None where forward was clean."""
        left = list(self._births.values())
        return next((birth for birth in left if not birth.was_absorbed), left[0] if left else None)

    def backward_birth(self) -> Birth | None:
        """The earliest origin from which a bad gradient reached a parameter or another leaf; None without one."""
        senders: dict[int, list[int]] = {}  # node or leaf -> indices of the bad nodes that sent it a bad gradient
        leaves: dict[int, Tensor] = {}
        for index, bad in enumerate(self._bad_nodes):
            for edge in bad.edges:
                target = bad.node.next_functions[edge][0]
                if target is not None and _accumulates(target):
                    leaves[id(target.variable)] = target.variable
                    senders.setdefault(id(target.variable), []).append(index)
                elif target is not None:
                    senders.setdefault(id(target), []).append(index)
        pending = [index for key, leaf in leaves.items() if self._was_harmed(leaf) for index in senders[key]]
        seen: set[int] = set()
        births: dict[int, Birth] = {}
        while pending:
            index = pending.pop()
            if index in seen:
                continue
            seen.add(index)
            bad = self._bad_nodes[index]
            earlier = senders.get(id(bad.node), [])
            pending += earlier
            if bad.is_origin:
                births[index] = Birth(self._owners[bad.node], self._most_telling(index), bad.largest_received)
            elif not earlier and bad.received is not None:
                births[index] = Birth(self._sender_of(bad.node), bad.received, None)
        return births[min(births)] if births else None

    # Forward

    def _before(self, owner: Owner, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = list(tensors_in([args, kwargs]))
        outer = self._calls[-1] if self._calls else None
        if outer is None and self._batch_size is None:
            self._batch_size = next((tensor.shape[0] for tensor in inputs if tensor.ndim), None)
        self._claim(inputs, Owner("loss", f"the code before {owner.place}") if outer is None else outer.owner)
        harmful = [tensor for tensor in inputs if is_harmful(tensor)]
        if harmful and not in_backward():
            if outer is None and not self._births:
                self._add(owner, harmful[0], inputs, module, is_input=True)
            elif outer is not None and outer.has_good_inputs and not self._born_in(outer):
                self._add(outer.owner, harmful[0], outer.inputs, outer.module)
        self._calls.append(_Call(owner, module, inputs, not harmful, self._num_births))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._calls.pop()
        while call.module is not module:  # an exception skipped the hooks of modules inside
            call = self._calls.pop()
        outputs = list(tensors_in(output))
        self._claim(outputs, call.owner)
        if in_backward() or not outputs:
            return
        harmful = [tensor for tensor in outputs if is_harmful(tensor)]
        if harmful:
            if call.has_good_inputs and not self._born_in(call):
                self._add(call.owner, harmful[0], call.inputs, module)
            return
        for serial in self._born_in(call):  # a masked softmax, a where: what was bad inside has ended here
            del self._births[serial]
        for serial in self._entered(call.inputs):
            if self._calls:
                self._births[serial].was_absorbed = True  # another consumer of the same tensor may suffer from it
            else:
                del self._births[serial]

    def _add(
        self, owner: Owner, tensor: Tensor, inputs: list[Tensor], module: nn.Module, *, is_input: bool = False
    ) -> None:
        seen, largest = evidence(tensor, self._batch_size), largest_finite(inputs)
        self._births[self._num_births] = Birth(owner, seen, largest, module, is_input, tensor=tensor.detach())
        self._num_births += 1

    def _born_in(self, call: _Call) -> list[int]:
        return [serial for serial in self._births if serial >= call.first_birth]

    def _entered(self, inputs: list[Tensor]) -> list[int]:
        storages = set(_storages(inputs))
        return [
            serial
            for serial, birth in self._births.items()
            if birth.tensor is not None and storages.intersection(_storages([birth.tensor]))
        ]

    # Backward

    def _claim(self, tensors: Sequence[Tensor], owner: Owner) -> None:
        """Assign to `owner` every node behind these tensors that has no owner yet, and watch it."""
        pending: list[Node] = [tensor.grad_fn for tensor in tensors]
        while pending:
            node = pending.pop()
            if node is None or node in self._owners or _accumulates(node):
                continue
            self._owners[node] = owner
            self._handles.append(node.register_hook(partial(self._after_node, node)))
            pending += [following for following, _ in node.next_functions]

    def _after_node(self, node: Node, produced: Sequence[Tensor | None], received: Sequence[Tensor | None]) -> None:
        bad = {index: gradient for index, gradient in enumerate(produced) if gradient is not None and is_bad(gradient)}
        if not bad:
            return
        given = [gradient for gradient in received if gradient is not None]
        bad_given = [gradient for gradient in given if is_bad(gradient)]
        # A parameter's gradient has no samples, even if its first dimension happens to be as long as the batch.
        seen = [evidence(g, None if self._leads_to_parameter(node, i) else self._batch_size) for i, g in bad.items()]
        arrived = evidence(bad_given[0], self._batch_size) if bad_given else None
        largest = None if bad_given else largest_finite(given)
        self._bad_nodes.append(_BadNode(node, list(bad), not bad_given, seen, arrived, largest))

    def _was_harmed(self, leaf: Tensor) -> bool:
        """Leaves that are no parameters, and gradients that were taken away already, are taken as harmed."""
        return id(leaf) not in self._parameters or leaf.grad is None or is_bad(leaf.grad)

    def _sender_of(self, node: Node) -> Owner:
        """Who sent a bad gradient to a node though no watched node did: the loss, or a sum of finite shares."""
        num_senders = sum(following is node for other in self._owners for following, _ in other.next_functions)
        if num_senders > 1:
            return self._owners[node]
        return Owner("loss", "the code between the model's output and the loss")

    def _most_telling(self, index: int) -> Evidence:
        """The origin's evidence with samples, else that of the next node of its module that has some."""
        origin = self._bad_nodes[index]
        owner = self._owners[origin.node]
        following = (bad for bad in self._bad_nodes[index:] if self._owners[bad.node] == owner)
        telling = (seen for bad in following for seen in bad.produced if seen.samples)
        return next(telling, origin.produced[0])

    def _leads_to_parameter(self, node: Node, edge: int) -> bool:
        """Whether an edge carries a parameter's gradient, perhaps through casts and transposes."""
        target = node.next_functions[edge][0]
        while target is not None and not _accumulates(target):
            following = [next_node for next_node, _ in target.next_functions if next_node is not None]
            target = following[0] if len(following) == 1 else None
        return target is not None and id(target.variable) in self._parameters


def _accumulates(node: Node) -> bool:
    return node.name() == "torch::autograd::AccumulateGrad"


def _storages(tensors: Sequence[Tensor]) -> Iterator[int]:
    for tensor in tensors:
        values = dense(tensor)
        if values is not None:
            yield values.untyped_storage().data_ptr()
