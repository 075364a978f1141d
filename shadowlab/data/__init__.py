"""Data sets, whatever their task: reading, decoding, resizing, splitting, ordering, loading."""

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
from shadowlab.data.duplicates import Thumbnails
from shadowlab.data.index import Entry, FileSource, Index, Problem, Role, SliceSource, Source, one_line, read_file
from shadowlab.data.indexed import IndexedDataset
from shadowlab.data.loader import Readable, endless_batches, in_order, micro_batch_positions
from shadowlab.data.metadata import JsonObject, describe, parse_object, read_keys, read_number, read_text
from shadowlab.data.order import sample_indices
from shadowlab.data.resizing import check_image_size, composite, fit_object, fit_object_strips, fit_square
from shadowlab.data.sample_set import SampleSet
from shadowlab.data.split import Split, split_by_object

__all__ = [
    # a data set and what it holds
    "Entry",
    "Index",
    "IndexedDataset",
    "Problem",
    "Role",
    "SampleSet",
    "Thumbnails",
    # files and metadata
    "FileSource",
    "JsonObject",
    "SliceSource",
    "Source",
    "describe",
    "list_members",
    "one_line",
    "parse_object",
    "read_file",
    "read_keys",
    "read_number",
    "read_text",
    # pictures
    "BACKGROUND",
    "MASK_THRESHOLD",
    "check_image_size",
    "composite",
    "decode",
    "fit_object",
    "fit_object_strips",
    "fit_square",
    "object_strips",
    "read_mask",
    "read_object",
    "read_shadow",
    # which samples, in which order
    "Readable",
    "Split",
    "endless_batches",
    "in_order",
    "micro_batch_positions",
    "sample_indices",
    "split_by_object",
]
