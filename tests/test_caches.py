"""A cache that cannot be written costs one sentence."""

import os
from pathlib import Path

import pytest

from shadowlab.caches import replace_unusable_caches

NAME = "TORCHINDUCTOR_CACHE_DIR"


def test_a_folder_for_compiled_code_that_cannot_be_made_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "/dev/null/nowhere")  # not even by root
    said = replace_unusable_caches()
    assert said == f"{NAME}: /dev/null/nowhere cannot be made (Not a directory); a temporary folder takes its place"
    assert os.access(os.environ[NAME], os.W_OK)


def test_one_that_can_be_made_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAME, str(tmp_path / "compiled"))
    assert replace_unusable_caches() == ""
    assert os.environ[NAME] == str(tmp_path / "compiled")


def test_a_user_without_a_name_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number: torch asks for the name while it is imported."""
    monkeypatch.delenv(NAME, raising=False)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert replace_unusable_caches() == ""  # root, or whoever runs this, has one
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert "has no name" in replace_unusable_caches()
    monkeypatch.delenv(NAME)
