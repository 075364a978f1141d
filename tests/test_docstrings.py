"""Every public function that takes or returns tensors says of which shapes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import House, room

# Sizes as in (B, 3, H, W), (rows, columns), (n,) or (B, ...); in words; or those of another function: "as `encode`".
SIZES = r"\((?:n|rows|names|[A-Z]{1,2}|\d+(?: or \d)?),[^()]*\)|\(\w+,\)|\([^()]*\.\.\.[^()]*\)"
WORDS = r"\bscalars?\b|\bany shapes?\b|\b(?:of|in) its shape\b|\b(?:same|whole|parameter's) shape\b|\bof `shape`"
SHAPE = re.compile(rf"{SIZES}|{WORDS}|\b[Aa]s `\w")


def unstated_shapes(house: House) -> list[str]:
    """Public functions with a Tensor in their signature whose docstring states no shape, in modules behind doors."""
    found = []
    for module in sorted(house.modules):
        if _is_offered(house, module):
            for name, function in _public_functions(house.trees[house.modules[module]]):
                text = ast.get_docstring(function) or ""
                if _has_tensors(function) and not SHAPE.search(text):
                    found.append(f"{house.modules[module]}:{function.lineno} {name}: of which shapes are its tensors?")
    return found


def _is_offered(house: House, module: str) -> bool:
    """Whether somebody outside the room can reach it: a room of one module, a door, or what a door exports from."""
    if room(module) == module or house.is_package(module):
        return True
    return any(one.target == module and house.is_package(one.module) for one in house.imports)


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions of the module and methods of its classes, without properties and without names for private use."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name[0] != "_" and not _is_property(method):
                    yield f"{node.name}.{method.name}", method


def _is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(one) for one in function.decorator_list)


def _has_tensors(function: ast.FunctionDef) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    notes = [one.annotation for one in every if one is not None] + [function.returns]
    return any(note is not None and re.search(r"\bTensor\b", ast.unparse(note)) for note in notes)


def test_public_functions_that_take_tensors_state_their_shapes() -> None:
    ours = House.read(Path(__file__).parents[1], "diagnostics", "shadowlab")
    assert not unstated_shapes(ours), "\n".join(unstated_shapes(ours))


SOURCE = """
def encode(ARGUMENT) -> int:
    '''TEXT'''
class Task:
    def judge(self) -> dict[str, Tensor]:
        '''TEXT'''
    def _hidden(self, x: Tensor) -> None: ...
    @property
    def data(self) -> Tensor: ...
"""


def module(text: str, argument: str = "x: Sequence[Tensor | None]") -> House:
    return House({"shadowlab/checks.py": SOURCE.replace("TEXT", text).replace("ARGUMENT", argument)})


@pytest.mark.parametrize("text", ["", "Latents of pictures.", "sum min(p, g)", "Of t (seed, step) and g."])
def test_function_without_shapes_is_found(text: str) -> None:
    found = unstated_shapes(module(text))
    assert [line.split(" ")[1] for line in found] == ["encode:", "Task.judge:"]
    assert found[0].startswith("shadowlab/checks.py:2 ")


@pytest.mark.parametrize("argument", ["*x: Tensor", "**x: Tensor", "*, x: Tensor", "x: torch.Tensor, /"])
def test_every_kind_of_argument_counts(argument: str) -> None:
    assert len(unstated_shapes(module("Latents.", argument))) == 2
    assert len(unstated_shapes(module("Latents.", "x: TensorLike"))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "(B, 3, H, W) -> (B,)",
        "int64 (length,)",
        "(..., 2)",
        "A boolean scalar.",
        "Tensors of any shape.",
        "As `encode`.",
    ],
)
def test_stated_shapes_pass(text: str) -> None:
    assert not unstated_shapes(module(text))


def test_modules_that_no_door_exports_from_are_left_alone() -> None:
    inner = {"shadowlab/data/files.py": "def read() -> Tensor: ..."}
    with_door = inner | {"shadowlab/data/__init__.py": "from shadowlab.data.files import read"}
    assert not unstated_shapes(House(inner))
    assert len(unstated_shapes(House(with_door))) == 1
