"""A run's records: lines of JSON on disk, what each kind of them says, and their history by name and step."""

from diagnostics.records.history import Curve, History, LayerTable, Samples
from diagnostics.records.kinds import (
    PARTS,
    STATISTICS,
    WORDS,
    ChartLine,
    ChartRecord,
    Evaluation,
    FindingRecord,
    Header,
    Health,
    Incident,
    Kinds,
    MetricRecord,
    Record,
    Stage,
    TrainingStep,
    evaluation,
)
from diagnostics.records.lines import RecordWriter, append_record, decode, encode, read_records, rounded

__all__ = [
    # lines on disk
    "RecordWriter",
    "append_record",
    "read_records",
    "decode",
    "encode",
    "rounded",
    # what they say
    "Record",
    "Header",
    "TrainingStep",
    "Evaluation",
    "Incident",
    "Health",
    "FindingRecord",
    "Stage",
    "ChartRecord",
    "ChartLine",
    "MetricRecord",
    "evaluation",
    "Kinds",
    "PARTS",
    "STATISTICS",
    "WORDS",
    # over the steps
    "History",
    "Curve",
    "LayerTable",
    "Samples",
]
