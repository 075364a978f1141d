"""Data sets, whatever their task: reading, decoding, resizing, splitting, ordering, loading."""

from shadowlab.data.archive import list_members
from shadowlab.data.column_files import joined_columns, split_columns
from shadowlab.data.csv_rows import CsvRow, listed_pictures, read_csv_rows
from shadowlab.data.decoding import (
    BACKGROUND,
    MASK_THRESHOLD,
    alpha_of,
    colour_levels,
    decode,
    matte_of,
    object_strips,
    read_mask,
    read_matte,
    read_object,
    read_shadow,
)
from shadowlab.data.duplicates import near_duplicates, thumbnail
from shadowlab.data.entries import Entries, EntriesWriter
from shadowlab.data.examination import Examination, Examined, Fault, Judgement, Judging, basis_of
from shadowlab.data.given import given_array, given_image, unit_values, upright
from shadowlab.data.index import Index
from shadowlab.data.indexed import IndexedDataset
from shadowlab.data.kept_index import indexed_once
from shadowlab.data.loader import Readable, endless_batches, in_order, micro_batch_positions
from shadowlab.data.metadata import JsonObject, describe, parse_object, read_keys, read_number, read_text
from shadowlab.data.order import sample_indices
from shadowlab.data.picture_folder import PICTURE_ENDINGS, PictureFiles, leads_out, list_pictures, plain_size
from shadowlab.data.proofs import described_split, order_fault, split_fault
from shadowlab.data.resizing import check_image_size, composite, fit_object, fit_object_strips, fit_square, unfit_square
from shadowlab.data.sample_set import SampleSet
from shadowlab.data.sources import Entry, FileSource, Problem, Role, SliceSource, Source, one_line, read_file
from shadowlab.data.split import Split, split_by_object

__all__ = [
    # a data set and what it holds
    "Entries",
    "EntriesWriter",
    "Entry",
    "Index",
    "IndexedDataset",
    "Problem",
    "Role",
    "SampleSet",
    "indexed_once",
    # a data set that is examined
    "Examination",
    "Examined",
    "Fault",
    "Judgement",
    "Judging",
    "basis_of",
    "near_duplicates",
    "thumbnail",
    # files and metadata
    "PICTURE_ENDINGS",
    "CsvRow",
    "FileSource",
    "JsonObject",
    "PictureFiles",
    "SliceSource",
    "Source",
    "describe",
    "joined_columns",
    "leads_out",
    "list_members",
    "list_pictures",
    "listed_pictures",
    "one_line",
    "parse_object",
    "plain_size",
    "read_csv_rows",
    "read_file",
    "read_keys",
    "read_number",
    "read_text",
    "split_columns",
    # pictures
    "BACKGROUND",
    "MASK_THRESHOLD",
    "alpha_of",
    "check_image_size",
    "colour_levels",
    "composite",
    "decode",
    "fit_object",
    "fit_object_strips",
    "fit_square",
    "given_array",
    "given_image",
    "matte_of",
    "object_strips",
    "read_mask",
    "read_matte",
    "read_object",
    "read_shadow",
    "unfit_square",
    "unit_values",
    "upright",
    # which samples, in which order
    "Readable",
    "Split",
    "described_split",
    "endless_batches",
    "in_order",
    "micro_batch_positions",
    "order_fault",
    "sample_indices",
    "split_by_object",
    "split_fault",
]
