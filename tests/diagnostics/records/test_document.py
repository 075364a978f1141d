"""docs/records.md is what the types say."""

import dataclasses
from pathlib import Path

import pytest

from diagnostics.records.document import described, document

ROOT = Path(__file__).parents[3]


def test_the_page_is_made_from_the_types() -> None:
    made = "python -m diagnostics.records.document > docs/records.md"
    assert (ROOT / "docs" / "records.md").read_text(encoding="utf-8") == document(), made


def test_a_key_without_a_meaning_is_not_documented() -> None:
    @dataclasses.dataclass
    class Silent:
        said: int
        """What it is."""
        unsaid: int

    with pytest.raises(ValueError, match="Silent: no docstring for unsaid"):
        described(Silent)
