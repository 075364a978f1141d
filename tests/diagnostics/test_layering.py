"""The package stands on torch and the standard library, and loads TensorBoard only to write a view."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diagnostics

FILES = sorted(Path(diagnostics.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names = [node.module or ""]
        for name in names:
            root = name.split(".")[0]
            assert root in {"torch", "diagnostics", "tensorboard"} or root in sys.stdlib_module_names, name
            if "tensorboard" in name and not name.startswith("diagnostics"):
                assert path.stem == "tensorboard" and node not in tree.body, "inside the writer's methods only"


def test_importing_the_package_does_not_load_tensorboard():
    code = "import diagnostics, diagnostics.board, sys; print('tensorboard' in sys.modules)"
    root = FILES[0].parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_public_names():
    for name in diagnostics.__all__:
        assert getattr(diagnostics, name).__doc__, name
