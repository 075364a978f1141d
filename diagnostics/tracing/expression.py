"""The expression in the code that issued an operator, and what that calls the operator's arguments."""

import ast
import linecache
import sys
import textwrap
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType, ModuleType

import torch

from diagnostics.tracing.operators import plain_name

_DIAGNOSTICS = f"{Path(__file__).resolve().parents[1]}/"
_TORCH = f"{Path(torch.__file__).resolve().parent}/"
_DISPATCH = ("_dynamo/", "_compile.py", "utils/_python_dispatch.py", "_ops.py", "utils/_device.py", "overrides.py")
_MAX_LETTERS = 160  # of an expression; of a name a third
_SIGNS: dict[type[ast.operator], tuple[str, ...]] = {
    ast.Div: ("div", "true_divide"),
    ast.Mult: ("mul",),
    ast.Add: ("add",),
    ast.Sub: ("sub", "rsub"),
    ast.Pow: ("pow",),
    ast.Mod: ("remainder", "fmod"),
}


@dataclass(frozen=True)
class Expression:
    """What issued an operator."""

    text: str
    """As the code has it, `param.addcdiv_(exp_avg, denom, value=-step_size)`."""
    source: str
    """`path:line`; in torch where torch wrote it, as its optimizers do."""
    names: dict[str, str] = field(default_factory=dict)
    """Argument, by its name in the operator's schema -> what stands there. Numbers that are written out are left out,
    and all where the expression is not a call of the operator itself, or its sign."""


def issuing_expression(func: torch._ops.OpOverload) -> Expression | None:
    """The innermost expression that is being evaluated outside of this package; None where its text is not known.

    Call it while the operator runs. Costs a look at the stack and the parsing of a line or two.
    """
    frame = _innermost(sys._getframe(1))
    segment = None if frame is None else _segment(frame)
    if frame is None or segment is None:
        return None
    tree = _parsed(segment)
    if tree is None:
        return None
    text = ast.unparse(tree)
    if len(text) > _MAX_LETTERS:
        return None
    given = _arguments(tree, plain_name(func), frame)
    schema = [argument.name for argument in func._schema.arguments]
    named = dict(zip(schema, given[0], strict=False)) | given[1]
    names = {
        name: ast.unparse(node)
        for name, node in named.items()
        if not isinstance(node, ast.Constant) and name in schema and ast.unparse(node) != name
    }
    short = {name: text for name, text in names.items() if len(text) <= _MAX_LETTERS // 3}
    return Expression(text, f"{frame.f_code.co_filename}:{frame.f_lineno}", short)


def _innermost(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        file = frame.f_code.co_filename
        is_dispatch = file.startswith(tuple(_TORCH + part for part in _DISPATCH))
        if not file.startswith(_DIAGNOSTICS) and not is_dispatch:
            return frame
        frame = frame.f_back
    return None


def _segment(frame: FrameType) -> str | None:
    """The text of the instruction that a frame is at."""
    position = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), None)
    if position is None:
        return None
    first, last, start, end = position
    if first is None or last is None or start is None or end is None or last - first > 20:
        return None
    lines = [linecache.getline(frame.f_code.co_filename, number).encode() for number in range(first, last + 1)]
    if not lines[-1]:
        return None
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode(errors="replace")


def _parsed(segment: str) -> ast.expr | ast.AugAssign | None:
    for text in (f"({segment}\n)", textwrap.dedent(segment)):
        try:
            [statement] = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if isinstance(statement, ast.AugAssign):
            return statement
        if isinstance(statement, ast.Expr):
            return statement.value
    return None


def _arguments(
    tree: ast.expr | ast.AugAssign, operator: str, frame: FrameType
) -> tuple[list[ast.expr], dict[str, ast.expr]]:
    """Arguments by position and by name; none where the expression is something else than this operator."""
    if isinstance(tree, ast.BinOp | ast.AugAssign):
        if operator not in _SIGNS.get(type(tree.op), ()):
            return [], {}
        sides = [tree.left, tree.right] if isinstance(tree, ast.BinOp) else [tree.target, tree.value]
        return (sides[::-1] if operator == "rsub" else sides), {}
    if not isinstance(tree, ast.Call):
        return [], {}
    called = tree.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    if name.removeprefix("_foreach_").strip("_") != operator or any(isinstance(a, ast.Starred) for a in tree.args):
        return [], {}
    is_method = isinstance(called, ast.Attribute) and not _is_module(called.value, frame)
    given = [called.value, *tree.args] if is_method and isinstance(called, ast.Attribute) else [*tree.args]
    return given, {word.arg: word.value for word in tree.keywords if word.arg is not None}


def _is_module(node: ast.expr, frame: FrameType) -> bool:
    """`torch`, `torch.special`, `F`: what a function is called of, rather than a tensor's method."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if not isinstance(node, ast.Name):
        return False
    return isinstance(frame.f_locals.get(node.id, frame.f_globals.get(node.id)), ModuleType)
