"""A run's records: lines of JSON on disk, and their history by name and step."""

from diagnostics.records.history import EVALUATIONS, PARTS, STATISTICS, Curve, History, LayerTable
from diagnostics.records.lines import RecordWriter, append_record, decode, encode, read_records, rounded

__all__ = [
    "EVALUATIONS",
    "PARTS",
    "STATISTICS",
    "Curve",
    "History",
    "LayerTable",
    "RecordWriter",
    "append_record",
    "decode",
    "encode",
    "read_records",
    "rounded",
]
