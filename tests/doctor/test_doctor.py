"""What `shadowlab doctor` says of a machine, and of one where something is wrong."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner, Result

from cli.main import app
from shadowlab.doctor import Item, examination, examine, machine, packages, self_test
from shadowlab.errors import UserError
from shadowlab.settings import load_config


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def bad(items: Any) -> list[Item]:
    """Everything that has a fix, which is all that is not in order."""
    found = [item for item in items if item.state != "ok"]
    assert all(item.fix for item in found), found
    return found


def test_where_all_is_well_it_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("shadowlab-doctor-*"))
    result = shadowlab("doctor", "--json", "--device", "cpu", "--set", f"output_dir={tmp_path / 'runs'}")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert document["seconds"] < 60
    tested = [item for item in document["items"] if item["topic"] == "self-test"]
    assert [item["state"] for item in tested] == ["ok"] * 3
    assert "a planted nan is traced to div in forward" in result.stderr
    assert "doctor: everything is in order" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert set(Path("/tmp").glob("shadowlab-doctor-*")) == before


def test_what_fails_has_its_fix_and_exits_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    result = shadowlab("doctor", "--device", "cuda:7", "--set", "output_dir=file/runs")
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    for problem, fix in {
        "  failed  device cuda:7: torch sees": "          fix: use --device cpu or a smaller number",
        "  failed  runs: file/runs cannot be written": "          fix: choose another --set output_dir=DIR",
    }.items():
        [place] = [number for number, line in enumerate(lines) if line.startswith(problem)]
        assert lines[place + 1] == fix
    assert any(line.startswith("  note    not tried: fix what failed above first") for line in lines)
    assert lines[-1].startswith("doctor: 2 failed; each has its fix next to it (")


def test_a_wrong_option_is_usage() -> None:
    assert shadowlab("doctor", "--preset", "tinny").exit_code == 2


def test_a_package_that_is_too_old_or_absent_comes_with_the_line_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    real = packages.metadata.version
    versions: dict[str, str | None] = {"diffusers": "0.1", "mitsuba": None}

    def version(name: str) -> str:
        found = versions.get(name, real(name))
        if found is None:
            raise packages.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(packages.metadata, "version", version)
    found = {item.text: item for item in bad(packages.packages())}
    old = found["diffusers 0.1, needed is >=0.38"]
    assert (old.state, old.fix) == ("failed", 'pip install "diffusers>=0.38"')
    extra = found["extra `render` is not complete: mitsuba"]
    assert (extra.state, extra.fix) == ("note", 'if you want it: pip install "mitsuba>=3.7"')


def test_a_package_that_cannot_be_imported_ends_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without its libraries is what somebody runs the doctor for."""
    real = importlib.import_module

    def broken(name: str) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file\nmore")
        return real(name)

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    found = examine(load_config())
    assert not found.passed
    [item] = [item for item in found.items if item.state == "failed"]
    assert item.text.endswith("cannot be imported (OSError: libcudart.so.12: cannot open shared object file)")
    assert item.fix == 'pip install "torch>=2.10" --force-reinstall'
    assert {item.topic for item in found.items} == {"versions", "self-test"}


def test_it_begins_without_torch() -> None:
    script = "import sys; from shadowlab.doctor import examine; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(Path, "exists", lambda self: "nvidia" in str(self) or exists(self))
    [item] = bad(machine.devices(load_config(options={"device": "cpu"})))
    assert item.state == "failed" and "an NVIDIA driver is loaded" in item.text and "CUDA_VISIBLE_DEVICES" in item.fix


def test_a_gpu_says_what_it_has_and_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 2**30, 80 * 2**30))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    config = load_config(options={"device": "cpu"})
    assert next(machine.devices(config)).text == (
        "cuda:0 H100, compute capability 9.0, 70.0 of 80.0 GiB free; has bf16 and tf32"
    )
    properties.major = 7
    assert next(machine.devices(config)).state == "note"

    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", refuses)
    [item] = bad(machine.devices(config))
    assert "cannot compute (CUDA error: no kernel image is available)" in item.text


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("precision=tf32", "TF32 exists on NVIDIA GPUs only"),
        ("device=cuda:9", "CUDA devices"),
        ("device=tpu", "use auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_the_configuration_asks_for_must_be_there(
    assignment: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [item] = [item for item in machine.devices(load_config(assignments=[assignment])) if item.state == "failed"]
    assert text in f"{item.text}; {item.fix}"


def test_too_little_memory_and_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(total=8 * 2**30, available=2**29)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert any("0.5 of" in item.text and item.state == "failed" for item in bad(machine.memory()))
    [item] = bad(machine.threads())
    assert item.text == "torch uses 64 threads on 2 cores: they wait for one another"
    assert item.fix == "export OMP_NUM_THREADS=2"


def test_the_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": f"{2**30}\n", "memory.current": f"{2**29}\n", "cpu.max": "150000 100000\n"}
    monkeypatch.setattr(machine, "_read", lambda file: files.get(file.name, ""))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert any(item.text.startswith("0.5 of 1.0 GiB free") for item in bad(machine.memory()))
    [item] = bad(machine.threads())
    assert "2 threads on 1.5 cores" in item.text and item.fix == "export OMP_NUM_THREADS=1"


def test_no_compiler_and_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20, total=2**30))
    [item] = bad(machine.compiler())
    assert item.state == "note" and "model.compile" in item.text
    [item] = bad(machine.disk(load_config()))
    assert item.text == "runs: runs, 0.0 GiB free, too few" and item.fix.startswith("make room")


@pytest.mark.parametrize(
    ("raised", "text", "fix"),
    [
        (UserError("data: is gone; put it back"), "data: is gone", "put it back"),
        (RuntimeError("cuDNN error\nmore"), "RuntimeError: cuDNN error (at ", "please report it"),
    ],
)
def test_a_self_test_that_breaks_is_an_item_like_any_other(
    raised: Exception, text: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: object) -> str:
        raise raised

    for name in ("_learns", "_resumes", "_explains"):
        monkeypatch.setattr(self_test, name, breaks)
    found = list(self_test.self_test("cpu"))
    assert [item.state for item in found] == ["failed"] * 3
    assert found[0].text.startswith(text) and found[0].fix.startswith(fix)


def test_losses_that_do_not_fall_or_are_missing_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(assignments=[f"output_dir={tmp_path}", "overfit.max_steps=6"])
    losses = [1.0] * 6

    def pretends(session: Any) -> None:
        session.run.metrics.write_text(
            '{"kind": "header", "stage": "overfit"}\n'
            + "".join(f'{{"kind": "overfit", "step": {i}, "loss": {x}}}\n' for i, x in enumerate(losses))
        )

    monkeypatch.setattr(self_test, "run_overfit", pretends)

    def said(run: Callable[[Any], str]) -> str:
        return self_test._tried(lambda: run(config)).text

    assert said(self_test._learns).endswith("the loss went from 1 to 1; it must fall")
    losses[:] = [1.0, 1.0]
    shutil.rmtree(tmp_path / "overfit")
    assert said(self_test._learns).endswith("metrics.jsonl has 2 steps of 6")


def test_without_the_self_test_it_is_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "packages", lambda: iter(()))
    seen: list[Item] = []
    found = examine(load_config(options={"device": "cpu"}), self_test=False, on_item=seen.append)
    assert list(found.items) == seen
    assert {item.topic for item in seen} == {"device", "memory", "threads", "compiler", "disk"}
