"""One operator, or one leaf, whose values are not finite: what it is, what was seen of it, what it comes from.

A *leaf* is a tensor that no traced operator made: a parameter, a batch, a number in the code.
"""

from dataclasses import dataclass, field
from typing import Literal

from diagnostics.tracing.bad_values import UNSEEN, BadValues
from diagnostics.tracing.examination import NOT_EXAMINED, Examination
from diagnostics.tracing.provenance import Span
from diagnostics.tracing.step_context import Place

LeafKind = Literal[
    "parameter", "buffer", "attribute", "optimizer state", "gradient", "data", "constant", "written", "unseen"
]
"""constant: an infinity, or a NaN outside of the model, that the code writes down. written: a NaN that the model's or
an autograd function's code writes down. unseen: written by what dispatches nothing, such as NumPy or an extension."""


@dataclass(frozen=True)
class Leaf:
    """What is known of a leaf."""

    kind: LeafKind
    name: str | None = None
    """As the caller names it."""
    is_mask: bool = False
    """It holds -inf and nothing positive."""
    is_number: bool = False
    """One number that is written down in the code. Its event's place is where it is put."""


@dataclass(slots=True)
class Ancestry:
    """What an operator's bad values came from."""

    harmful: set[int] = field(default_factory=set)
    """Nodes that the harmful ones came from; empty where they were born here."""
    turned: set[int] = field(default_factory=set)
    """Nodes of legitimate infinities that became harmful here."""
    passed: set[int] = field(default_factory=set)
    """Nodes that the legitimate infinities came from."""
    span: Span | None = None
    """The rows of the batch that it was computed from, where not from all."""
    from_batch: bool = False
    """Computed from the batch; likewise from a model's output, from a parameter's gradient."""
    from_model: bool = False
    from_gradient: bool = False
    has_infinite_scalar: bool = False
    """A Python number among the arguments is infinite."""

    @property
    def nodes(self) -> set[int]:
        """All nodes that the bad values came from."""
        return self.harmful | self.turned | self.passed


@dataclass(slots=True)
class Written:
    """Where an event put its values."""

    storages: list[int] = field(default_factory=list)
    """Keys of the storages that now hold bad ones."""
    updates_old: bool = False
    """It wrote to what was there before the step."""
    replaces: frozenset[int] = frozenset()
    """Old storages that it may be the successor of (see `provenance.Storage`)."""


@dataclass(slots=True)
class Event:
    """An operator that returned non-finite values, or a leaf that had them."""

    number: int
    """Position in time, from 1."""
    op: str
    """The operator's name; of a leaf its kind."""
    place: Place | None
    """Where it ran; of a leaf, where it was first met in the step, None where it was known before."""
    namespace: str = "aten"
    is_allocation: bool = False
    """New memory, whose garbage harms nobody until it is read."""
    leaf: Leaf | None = None
    ancestry: Ancestry = field(default_factory=Ancestry)
    written: Written = field(default_factory=Written)
    values: BadValues = UNSEEN
    """As seen right after it ran."""
    examination: Examination = NOT_EXAMINED
    """What recomputation says, of those that may be an origin."""
    children: list[int] = field(default_factory=list)
    """Events that computed with its bad values."""
    absorbers: list[str] = field(default_factory=list)
    """Operators that read its bad values and returned finite ones."""
    is_harmful: bool = False
    """Some of its values are more than infinities that are meant."""
    enters_model: bool = False
    """An operator whose result is an argument of the model's call."""
    scales_gradients: bool = False
    """Gradients were multiplied by this number, or by one that was made from it."""

    @property
    def kind(self) -> LeafKind | None:
        """Of a leaf; None for an operator."""
        return None if self.leaf is None else self.leaf.kind

    @property
    def name(self) -> str | None:
        """Of a leaf, as the caller names it."""
        return None if self.leaf is None else self.leaf.name

    @property
    def is_number(self) -> bool:
        """Whether it is a number that is written down in the code."""
        return self.leaf is not None and self.leaf.is_number

    @property
    def is_mask(self) -> bool:
        """Whether it is a leaf of -inf and nothing positive."""
        return self.leaf is not None and self.leaf.is_mask
