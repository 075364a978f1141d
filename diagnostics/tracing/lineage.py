"""What each tensor was computed from: the batch, a model's output, gradients, numbers that the loop worked out."""

from torch import Tensor

from diagnostics.tracing.calls import OperatorCall
from diagnostics.tracing.events import Ancestry
from diagnostics.tracing.nested import leaves
from diagnostics.tracing.operators import Operator, is_arithmetic
from diagnostics.tracing.provenance import Memory, Storage, storage_key
from diagnostics.tracing.spread import Dispatch
from diagnostics.tracing.step_context import Place


class Lineage:
    """Carries what is known of an operator's inputs over to what it writes. All tensors are strided, of any shape."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._read_on_host: frozenset[int] = frozenset()  # events that the host knows a number of

    def carry_over(
        self, inputs: list[Tensor], sources: list[Storage], written: list[Tensor], *, in_model: bool
    ) -> list[Storage]:
        """After any operator; returns the records of what was written.

        sources: records of the inputs.
        """
        from_batch = from_gradient = False
        from_model = in_model
        for source in sources:
            from_batch |= source.from_batch
            from_model |= source.from_model
            from_gradient |= source.from_gradient
        span = self._memory.spans(inputs, sources) if from_batch else None
        records = [self._memory.storage(tensor) for tensor in written]
        for tensor, record in zip(written, records, strict=True):
            record.version += 1
            record.span = span if span is not None and self._memory.covers(tensor) else None
            record.from_batch = record.from_batch or from_batch
            record.from_model = record.from_model or from_model
            record.from_gradient = record.from_gradient or from_gradient
        return records

    def follow(self, op: Operator, call: OperatorCall, inputs: list[Tensor], written: list[Tensor]) -> set[int]:
        """After one of the loop's own operators: note what its numbers carry, and what succeeds an average.

        Returns:
            Events whose number, or one made from it, gradients were multiplied by.
        """
        carried = self._carried(inputs)
        if any(isinstance(value, float) for value in leaves((call.args, call.kwargs))):
            carried |= self._read_on_host  # it may have come by way of Python
        scaling: set[int] = set()
        for tensor in written:
            record = self._memory.storage(tensor)
            if tensor.numel() == 1:
                record.carries = carried
            elif record.from_gradient:
                scaling |= carried
            if is_arithmetic(op.name) and op.name.rstrip("_") not in ("div", "_foreach_div"):
                same = [(t, self._memory.storage(t)) for t in inputs if t.shape == tensor.shape]
                old = {storage_key(t) for t, known in same if known.is_old}
                record.replaces = frozenset(old).union(*(known.replaces for _, known in same))
            else:
                record.replaces = frozenset()
        return scaling

    def note_read(self, inputs: list[Tensor]) -> None:
        """The loop read a number on the host, and may use it in Python."""
        self._read_on_host |= self._carried(inputs)

    def ancestry(self, dispatch: Dispatch, place: Place) -> Ancestry:
        """Of an operator that has just run. The nodes that its bad values came from are added by output."""
        known = self.known(dispatch.inputs)
        span = self._memory.spans(dispatch.inputs, map(self._memory.known, dispatch.inputs))
        if span is None and place.in_backward:  # the gradient is everybody's, what the forward call saved is not
            spans = filter(None, map(self._memory.span, dispatch.inputs))
            span = min(spans, key=lambda one: one.last - one.first, default=None)
        return Ancestry(
            span=span,
            from_batch=any(record.from_batch for record in self.known(dispatch.written)),  # a part may be written
            from_model=any(record.from_model for record in known),
            from_gradient=any(record.from_gradient for record in known),
            has_infinite_scalar=dispatch.has_infinite_scalar,
        )

    def known(self, tensors: list[Tensor]) -> list[Storage]:
        """Records of those tensors whose storage was seen."""
        return [record for record in map(self._memory.known, tensors) if record is not None]

    def _carried(self, tensors: list[Tensor]) -> frozenset[int]:
        return frozenset().union(*(record.carries for record in self.known(tensors)))
