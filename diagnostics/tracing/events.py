"""One operator, or one leaf, whose values are not finite."""

from dataclasses import dataclass, field
from typing import Any

import torch

from diagnostics.tracing.provenance import Span
from diagnostics.tracing.recomputation import Before
from diagnostics.tracing.step_context import Place


@dataclass
class Event:
    """An operator that returned non-finite values, or a leaf that had them.

    harm_parents: nodes that the harmful output came from; empty where it was born here. turned: legitimate infinities
    that became harmful here. whole, rows: a shape and the indices along its first dimension with harmful elements; of
    a view, those of the whole tensor.
    """

    number: int
    op: str
    place: Place | None
    leaf: str | None = None  # kind of a leaf: parameter, buffer, optimizer state, gradient, data, constant, unseen
    name: str | None = None  # of a leaf
    namespace: str = "aten"
    harm_parents: set[int] = field(default_factory=set)
    turned: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)  # parents of the legitimate infinities in the output
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    value: str = "nan"
    index: tuple[int, ...] = ()
    slot: int = 0  # which of the operator's outputs
    whole: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    span: Span | None = None  # the rows of the batch that it was computed from, where not from all
    from_batch: bool = False
    from_model: bool = False
    from_gradient: bool = False
    is_mask: bool = False  # a leaf of -inf and nothing positive
    is_allocation: bool = False
    has_infinite_scalar: bool = False  # among its arguments
    written: list[int] = field(default_factory=list)  # storages that now hold the values
    scales_gradients: bool = False  # a number that gradients were multiplied by, or by what was made of it
    replaces: frozenset[int] = frozenset()  # see `provenance.Storage`
    updates_old: bool = False  # writes to what was there before the step
    is_number: bool = False  # a leaf: a NaN written down in the code, whose place is where it is put
    judgement: Any = None  # of a birth: see `ieee`
    call: Before | None = None  # of one of the first births: operands as they were before the call
    children: list[int] = field(default_factory=list)
    absorbers: list[str] = field(default_factory=list)
