"""Data sets of (object image, mask, light) -> shadow: reading, checking, splitting, ordering."""

from shadowlab.data.archive import list_members
from shadowlab.data.decoding import (
    BACKGROUND,
    MASK_THRESHOLD,
    decode,
    object_strips,
    read_mask,
    read_object,
    read_shadow,
)
from shadowlab.data.index import ROLES, Entry, FileSource, Index, Light, Problem, Role, SliceSource, Source, one_line
from shadowlab.data.loader import Readable, endless_batches, in_order, micro_batch_positions
from shadowlab.data.order import sample_indices
from shadowlab.data.split import Split, split_by_object

__all__ = [
    "BACKGROUND",
    "MASK_THRESHOLD",
    "ROLES",
    "Entry",
    "FileSource",
    "Index",
    "Light",
    "Problem",
    "Readable",
    "Role",
    "SliceSource",
    "Source",
    "Split",
    "decode",
    "endless_batches",
    "in_order",
    "list_members",
    "micro_batch_positions",
    "object_strips",
    "one_line",
    "read_mask",
    "read_object",
    "read_shadow",
    "sample_indices",
    "split_by_object",
]
