"""A data set before any picture of it is decoded: its entries, and everything that is wrong with them."""

import hashlib
import json
from dataclasses import dataclass, field

from shadowlab.data.entries import Entries, no_entries
from shadowlab.data.sources import Problem


@dataclass
class Index:
    """All entries of a data set, sorted by id, with its faults and remarks."""

    entries: Entries = field(default_factory=no_entries)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Of how the index came about, which says nothing of the data set."""
    digest: str = ""
    """What `fingerprint` came to, where it is known."""

    def fingerprint(self) -> str:
        """SHA-256 of ids, objects, numbers, tracks, file names and file sizes; the same wherever the data lie."""
        if not self.digest:
            digest = hashlib.sha256(b"[")
            for i, entry in enumerate(self.entries):
                pictures = sorted((source.name, source.size) for source in entry.sources.values())
                row = [entry.id, entry.object_id, entry.values, entry.track, pictures]
                digest.update((", " * (i > 0) + json.dumps(row)).encode())
            digest.update(b"]")
            self.digest = digest.hexdigest()
        return self.digest
