"""What is kept of a step that met a non-finite value: a folder per incident."""

from diagnostics.incidents.evidence import environment, load_evidence, write_incident
from diagnostics.incidents.excerpt import SourceExcerpt

__all__ = [
    # Writing
    "environment",
    "write_incident",
    # Reading
    "SourceExcerpt",
    "load_evidence",
]
