"""What is kept of a step that met a non-finite value."""

from diagnostics.incidents.evidence import environment, load_evidence, write_incident
from diagnostics.incidents.excerpt import SourceExcerpt

__all__ = [
    "SourceExcerpt",
    "environment",
    "load_evidence",
    "write_incident",
]
