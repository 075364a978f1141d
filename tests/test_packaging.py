"""The built wheel, alone in an environment, run from a folder that would shadow our packages."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("shadowlab-*.whl"))


def test_wheel_holds_modules_presets_and_embedded_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("shadowlab", "cli", "diagnostics"):
        assert not [m for m in (ROOT / package).rglob("*.py") if str(m.relative_to(ROOT)) not in names]
    assert "diagnostics/py.typed" in names
    for preset in (ROOT / "configs").glob("*.yaml"):
        assert f"shadowlab/configs/{preset.name}" in names
    embedded = [file for folder in ("assets", "views/page/assets") for file in (ROOT / "shadowlab" / folder).rglob("*")]
    for file in embedded:
        if file.is_file():
            assert str(file.relative_to(ROOT)) in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"shadowlab", "cli", "diagnostics"}


def test_every_imported_package_is_declared() -> None:
    """What the code imports is a dependency of its own, not one that happens to come with another package."""
    imported = set()
    for package in ("shadowlab", "cli", "diagnostics"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"shadowlab", "cli", "diagnostics"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    of_users = [requirement for extra in extras.keys() - {"dev", "docs"} for requirement in extras[extra]]
    requirements = [*project["dependencies"], *of_users]
    declared = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in requirements}
    declared.add("pytorch-lightning")  # the same library by its old name, for those who have that one
    distributions = metadata.packages_distributions()
    undeclared = {name for name in foreign if not {d.lower() for d in distributions[name]} & declared}
    assert not undeclared


def test_installed_wheel_runs_among_decoys(wheel: Path, tmp_path: Path) -> None:
    """Console script, presets, embedded data and the fault corpus come from the wheel, not from the working folder."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    # Dependencies are borrowed from this environment; .pth files in a borrowed folder are not read, so the
    # checkout's own editable install stays invisible.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    work = tmp_path / "work"
    for decoy in ("cli", "configs", "diagnostics", "shadowlab"):
        (work / decoy).mkdir(parents=True)
        (work / decoy / "__init__.py").write_text("raise ImportError('decoy')\n")
    (work / "configs" / "tiny.yaml").write_text("nonsense: true\n")

    def shadowlab(*arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / "shadowlab", *arguments],
            cwd=work,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "check-forward: passed" in shadowlab("check-forward", "--run", "wheel")
    assert (work / "runs" / "wheel" / "stages.json").is_file()
    # A case whose line is looked up in the installed source, one that is named by its parameter, a benign one.
    cases = ("gamma_curve_at_black", "unwritten_weight", "running_minimum")
    report = json.loads(shadowlab("bench", "faults", "--json", *(f"--only={name}" for name in cases)))
    assert report["passed"] and report["num_benign"] == 1
    assert report["cases"][0]["verdict"]["source"].startswith(str(site.resolve() / "shadowlab/bench/corpus"))
