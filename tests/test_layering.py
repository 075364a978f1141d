"""Imports run one way: cli -> shadowlab -> diagnostics -> torch. Optional packages are imported where they are used."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {"mitsuba", "drjit", "trimesh"}


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def imports(file: Path, *, inside_functions: bool) -> Iterator[tuple[str, int]]:
    """Top names of what `file` imports, with lines. `if TYPE_CHECKING` blocks count as inside a function."""

    def walk(node: ast.AST, deferred: bool) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inner = deferred or guarded or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import) and (inside_functions or not inner):
                yield from ((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and (inside_functions or not inner):
                assert child.level == 0, f"{file}:{child.lineno}: relative import"
                yield child.module or "", child.lineno
            yield from walk(child, inner)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), False)


def top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("file", sources("diagnostics"), ids=lambda path: path.name)
def test_diagnostics_knows_torch_and_nothing_else(file: Path) -> None:
    allowed = {"torch", "diagnostics", *sys.stdlib_module_names}
    for name, line in imports(file, inside_functions=True):
        writes_tensorboard = file.name == "tensorboard.py" and top(name) == "tensorboard"
        assert top(name) in allowed or writes_tensorboard, f"{file.name}:{line} imports {name}"


def test_tensorboard_is_imported_by_its_writer_alone() -> None:
    """A loop without TensorBoard can still be watched."""
    for file in sources("diagnostics"):
        for name, line in imports(file, inside_functions=False):
            assert top(name) != "tensorboard", f"{file.name}:{line}"


def test_shadowlab_does_not_know_its_command_line() -> None:
    for file in sources("shadowlab"):
        for name, line in imports(file, inside_functions=True):
            assert top(name) not in {"cli", "typer", "tests"}, f"{file.name}:{line} imports {name}"


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for package in ("cli", "shadowlab", "diagnostics"):
        for file in sources(package):
            for name, line in imports(file, inside_functions=False):
                assert top(name) not in OPTIONAL, f"{file.name}:{line} imports {name}"


def test_help_does_not_wait_for_torch() -> None:
    for file in sources("cli"):
        for name, line in imports(file, inside_functions=False):
            assert top(name) in {"cli", "typer", *sys.stdlib_module_names}, f"{file.name}:{line} imports {name}"


def test_nothing_is_pickled() -> None:
    """Files are read and written as safetensors and JSON."""
    for package in ("shadowlab", "cli"):
        for file in sources(package):
            assert "pickle" not in {top(name) for name, _ in imports(file, inside_functions=True)}, file
            called = {
                ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
            }
            assert not called & {"torch.load", "torch.save"}, file
