"""The pages that are made from the code are what the code says."""

from pathlib import Path

import pytest

from scripts.reference import made_pages


@pytest.mark.parametrize("page", made_pages(), ids=lambda page: page.name)
def test_page_is_what_the_code_says(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == made_pages()[page], "write it: python -m scripts.reference"
