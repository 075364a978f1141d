"""The command `demo` where it cannot serve."""

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.demo.serve import HOST


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["demo", *words])
    return done.exit_code, done.stderr


def test_without_gradio_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("small") == (3, "error: the demo needs gradio: pip install 'shadowlab[demo]'\n")


def test_a_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run("small", "--port", str(port))
    assert code == 2 and said.startswith(f"error: --port {port}: cannot be used (Address already in use)")


def test_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    code, said = run("nothing")
    assert code == 2 and said.startswith("error: nothing: no such model")
