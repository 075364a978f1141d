"""Files from anywhere: what is no regular file is not opened, what is large or deep is refused, links are not written
through."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diagnostics.files import (
    LongLineError,
    RefusedFileError,
    append_to,
    create,
    is_inside,
    lock_file,
    open_file,
    parse_json,
    paths_in,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    reason_of,
    remove_tree,
    replace,
    replace_text,
    require_file,
    sha256_of,
)


def make_pipe(place: Path) -> None:
    os.mkfifo(place)


def make_socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's name has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": make_pipe,
    "a socket": make_socket,
    "a device": lambda place: place.symlink_to("/dev/zero"),
    "a folder": lambda place: place.mkdir(),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("use", [open_file, read_bytes, read_text, read_json, sha256_of, require_file])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str, use: Callable[[Path], object]) -> None:
    SPECIAL[kind](tmp_path / "file")
    began = time.monotonic()
    with pytest.raises(RefusedFileError) as refused:
        use(tmp_path / "file")
    assert refused.value.strerror == f"{kind}, not a file"
    assert refused.value.filename == str(tmp_path / "file")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("use", [append_to, lock_file])
def test_nothing_but_a_regular_file_is_written_to(tmp_path: Path, kind: str, use: Callable[[Path], object]) -> None:
    SPECIAL[kind](tmp_path / "file")
    with pytest.raises(RefusedFileError, match="link" if kind == "a device" else kind):
        use(tmp_path / "file")


def test_a_pipe_put_in_place_between_look_and_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.stat` is the look; what is opened then is another thing."""
    file, opened = tmp_path / "file", os.open

    def exchanged(path: Path, *words: int) -> int:
        file.unlink()
        os.mkfifo(file)
        return opened(path, *words)

    file.write_text("harmless")
    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(RefusedFileError, match="a pipe"):
        open_file(file)


def test_a_link_put_in_place_between_look_and_opening_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside, opened = tmp_path / "run", tmp_path / "secret", os.open
    folder.mkdir()
    outside.write_text("secret")
    (folder / "file").write_text("harmless")

    def exchanged(path: Path, *words: int) -> int:
        (folder / "file").unlink()
        (folder / "file").symlink_to(outside)
        return opened(path, *words)

    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(RefusedFileError, match="leads out of"):
        open_file(folder / "file", inside=folder)


def test_links_inside_a_folder_are_followed_and_links_out_of_it_are_not(tmp_path: Path) -> None:
    real, run, other = tmp_path / "scratch", tmp_path / "run", tmp_path / "run-2"
    real.mkdir(), other.mkdir()
    run.symlink_to(real)  # the folder itself may be a link
    (run / "a.txt").write_text("mine")
    (other / "b.txt").write_text("theirs")
    (run / "same").symlink_to("a.txt")
    (run / "out").symlink_to(other / "b.txt")
    (run / "folder").symlink_to(other)
    (run / "loop").symlink_to("loop")
    assert read_text(run / "same", inside=run) == read_text(run / "a.txt", inside=real) == "mine"
    for path in (run / "out", run / "folder" / "b.txt", run / ".." / "run-2" / "b.txt"):
        with pytest.raises(RefusedFileError, match="leads out of"):
            read_text(path, inside=run)
    with pytest.raises(OSError, match="symbolic links"):
        read_text(run / "loop", inside=run)
    assert [path.name for path in paths_in(run, "*")] == ["a.txt", "loop", "same"]
    assert is_inside(run, run) and not is_inside(other, run) and not is_inside(tmp_path, run)


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(RefusedFileError, match=r"5,120\.0 MiB, at most 64 are read"):
        read_bytes(tmp_path / "sparse")
    (tmp_path / "small").write_bytes(b"12345")
    assert read_bytes(tmp_path / "small", limit=5) == b"12345"
    with pytest.raises(RefusedFileError):
        read_bytes(tmp_path / "small", limit=4)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="files that tell no size")
def test_a_file_that_tells_no_size_is_bounded_too() -> None:
    with pytest.raises(RefusedFileError):
        read_bytes("/proc/self/smaps", limit=10)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 65 + "1" + "}" * 65, "[" * 65 + "]" * 65, "[[],[{" * 70])
def test_deep_json_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="^nested deeper than 64 lists and objects$"):
        parse_json(text)


@pytest.mark.parametrize(
    "content",
    [
        *([0], {"a": [1.5, None, "x"]}, "[" * 1000, {"[{" * 200: ["]}", '"[[', "\\"]}, ["\\" * n for n in range(70)]),
        [[{"k": i} for i in range(50)] for _ in range(50)],
        json.loads("[" * 64 + "]" * 64),
    ],
)
def test_json_that_is_not_deep_is_read_whatever_its_texts_hold(content: object) -> None:
    assert parse_json(json.dumps(content)) == parse_json(json.dumps(content, indent=1).encode()) == content


def test_a_text_without_an_end_takes_no_longer_than_one_with_an_end() -> None:
    """Every quote inside of it could begin another, which has no end either."""
    for end in ("", "\\"):
        began = time.process_time()
        with pytest.raises(ValueError, match="Unterminated string"):
            parse_json('"' + '\\"' * 20_000 + "[" * 65 + end)
        assert time.process_time() - began < 5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1" + b"0" * 5000 + b"]", b"\0" * 100, b'{"a": "\xc3"}'])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file")


def test_a_line_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\ntwo\n" + b"x" * 100)
    with open_file(tmp_path / "lines") as file:
        assert list(read_lines(file, "lines", longest=200)) == [b"one\n", b"two\n", b"x" * 100]
    with open_file(tmp_path / "lines") as file:
        lines = read_lines(file, "lines", longest=50)
        assert [next(lines), next(lines)] == [b"one\n", b"two\n"]
        with pytest.raises(LongLineError, match="^lines:3: a line of"):
            next(lines)


@pytest.mark.parametrize("write", [lambda p: replace_text(p, "new"), lambda p: create(p).close()])
def test_writing_replaces_a_link_and_leaves_what_it_leads_to(tmp_path: Path, write: Callable[[Path], None]) -> None:
    outside, place = tmp_path / "precious", tmp_path / "file"
    outside.write_text("precious")
    place.symlink_to(outside)
    write(place)
    assert outside.read_text() == "precious" and not place.is_symlink() and place.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "precious"]


@pytest.mark.parametrize("use", [append_to, lock_file])
def test_links_are_neither_appended_to_nor_locked(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for name in ("dangling", "link"):
        with pytest.raises(RefusedFileError, match="a link, not a file"):
            use(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious" and not (tmp_path / "made").exists()


def test_files_are_appended_to_and_locked_without_losing_what_is_there(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        with append_to(tmp_path / "log") as file:
            file.write(text)
    lock_file(tmp_path / "log").close()
    lock_file(tmp_path / "new").close()
    assert read_text(tmp_path / "log") == "one\ntwo\n" and (tmp_path / "new").is_file()


def test_replacing_keeps_the_old_file_where_the_new_one_fails(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_removing_a_link_to_a_folder_keeps_the_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / "link").symlink_to("precious")
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "link").symlink_to(tmp_path / "precious")
    for name in ("link", "tree", "absent"):
        remove_tree(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "precious"]


def test_reasons_are_short_and_never_empty(tmp_path: Path) -> None:
    with pytest.raises(OSError) as absent:
        open_file(tmp_path / "absent")
    assert reason_of(absent.value) == "No such file or directory"
    assert reason_of(OSError("one\ntwo")) == "one two" and reason_of(OSError()) == "OSError"


def test_opening_files_waits_for_no_torch() -> None:
    import subprocess

    script = "import sys, diagnostics.files; print('torch' in sys.modules); import diagnostics as d; d.Watch, d.board"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
