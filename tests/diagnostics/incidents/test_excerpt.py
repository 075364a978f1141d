"""A few lines of a source file, as they were."""

import json
import os
import time
from pathlib import Path

import pytest

from diagnostics.incidents.excerpt import SourceExcerpt


def source(folder: Path, *, age: float = 1e6) -> Path:
    file = folder / "step.py"
    file.write_text("".join(f"x{n} = {n}\n" for n in range(1, 31)))
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.mark.parametrize(("line", "first", "last"), [(1, 1, 7), (15, 9, 21), (30, 24, 30)])
def test_a_few_lines_around_one(tmp_path: Path, line: int, first: int, last: int) -> None:
    found = SourceExcerpt.read(f"{source(tmp_path)}:{line}")
    assert found is not None
    assert (found.first, found.lines[0], found.lines[-1]) == (first, f"x{first} = {first}", f"x{last} = {last}")
    assert found.is_older
    assert SourceExcerpt.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "text", ["", "step.py", "absent.py:3", "{file}:0", "{file}:31", "{file}:x", "{file}:²", "\0:3"]
)
def test_no_such_line(tmp_path: Path, text: str) -> None:
    assert SourceExcerpt.read(text.format(file=source(tmp_path))) is None


@pytest.mark.parametrize("content", [[], {}, {"lines": 3}, {"file": "a", "line": "1", "first": 1, "lines": []}])
def test_something_else_is_no_excerpt(content: object) -> None:
    with pytest.raises(ValueError, match="not an excerpt"):
        SourceExcerpt.from_json(content)


def test_a_file_that_was_written_after_its_code_was_loaded(tmp_path: Path) -> None:
    found = SourceExcerpt.read(f"{source(tmp_path, age=-5)}:15")
    assert found is not None and not found.is_older
    assert found.is_unchanged(tmp_path) and found.is_unchanged(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "name", ["elsewhere/step.py", "here/.ssh/step.py", "here/passwd", "here/link.py", "here/pipe.py"]
)
def test_for_a_verdict_from_elsewhere_only_python_sources_below_a_folder_are_read(tmp_path: Path, name: str) -> None:
    text = "".join(f"secret {n}\n" for n in range(20))
    for folder in ("elsewhere", "here/.ssh"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("elsewhere/step.py", "here/.ssh/step.py", "here/passwd", "here/step.py"):
        (tmp_path / file).write_text(text)
    (tmp_path / "here" / "link.py").symlink_to(tmp_path / "elsewhere" / "step.py")
    os.mkfifo(tmp_path / "here" / "pipe.py")
    assert SourceExcerpt.read(f"{tmp_path / name}:3", below=tmp_path / "here") is None
    assert SourceExcerpt.read(f"{tmp_path / 'here' / 'step.py'}:3", below=tmp_path / "here") is not None
