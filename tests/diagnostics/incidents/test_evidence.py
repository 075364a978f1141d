"""What an incident's folder holds can be read again, and does not grow without bound."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diagnostics import Verdict
from diagnostics.incidents import evidence, load_evidence, write_incident

VERDICT = Verdict("data", None, "bad_data", step=3)


@dataclass
class Batch:
    images: Tensor
    ids: tuple[str, ...]
    source: object


def written(folder: Path, batch: Any) -> Path:
    return write_incident(folder, VERDICT, culprit=None, batch=batch, randomness={"cpu": torch.get_rng_state()})


def test_a_batch_of_any_make_is_read_back_without_running_code(tmp_path: Path) -> None:
    images = torch.randn(2, 3)
    place = written(tmp_path, Batch(images, ("a", "b"), source=Path("there")))
    kept = load_evidence(place / "batch.pt")
    assert torch.equal(kept["images"], images)
    assert kept["ids"] == ["a", "b"] and "there" in kept["source"]
    assert not (place / "repro.py").exists()


def test_a_batch_beyond_the_limit_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_BATCH_LIMIT", 64)
    kept = load_evidence(written(tmp_path, {"small": torch.ones(4), "large": torch.ones(100)}) / "batch.pt")
    assert torch.equal(kept["small"], torch.ones(4))
    assert kept["large"].startswith("not kept: (100,) torch.float32")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"no archive"])
def test_evidence_that_cannot_be_read_names_the_file(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "batch.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"batch\.pt: cannot be read"):
        load_evidence(file)
