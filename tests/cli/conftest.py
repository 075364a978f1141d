"""Commands run in an empty folder, on the small stages."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def options(stage_folder: dict[str, Path]) -> list[str]:
    return [
        *("--data", str(stage_folder["data"]), "--weights", str(stage_folder["unet"]), "--device", "cpu"),
        *("--set", f"model.vae={stage_folder['vae']}", "--set", "data.image_size=32"),
    ]
