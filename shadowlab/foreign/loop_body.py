"""The body of a script's own loop, found from where the script stands, and run again from its source.

A step of a script cannot be called. But the loop that it stands in has its source, the values of its variables, and
what its data loader gave. A copy of the statements from the loop's beginning, or from the step before where that lies
in the same round, up to the optimizer's step is run with them. What it assigns stays in the copy.
"""

import ast
import inspect
import linecache
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType, TracebackType
from typing import Any

from diagnostics.tracing import is_library
from shadowlab.foreign.script import is_ours

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_CANNOT = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Nonlocal)


Loop = ast.For | ast.While


class NoBodyError(Exception):
    """There is nothing that can be run again; the text says why."""


@dataclass(frozen=True)
class Moment:
    """A frame of the script's code as it is now."""

    number: int
    """Of the frame; its code's next call has another, or the same later on."""
    code: CodeType
    line: int
    """1-based."""
    globals: dict[str, Any]
    values: dict[str, Any]
    """Its variables, by name: the references of now."""

    @classmethod
    def of(cls, frame: FrameType, line: int) -> "Moment":
        return cls(id(frame), frame.f_code, line, frame.f_globals, dict(frame.f_locals))


def places(start: FrameType | None) -> list[tuple[FrameType, int]]:
    """Frames of the script's code with their lines, innermost first."""
    found = []
    while start is not None:
        if _is_script(start):
            found.append((start, start.f_lineno))
        start = start.f_back
    return found


def places_of(traceback: TracebackType | None) -> list[tuple[FrameType, int]]:
    """The same where an error passed."""
    found = []
    while traceback is not None:
        if _is_script(traceback.tb_frame):
            found.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return found[::-1]


def _is_script(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not is_ours(name) and not is_library(name)


def is_installed(frame: FrameType) -> bool:
    """Whether its code is a package's: `Accelerator.backward`, say, which a script calls in its own loop."""
    return "/site-packages/" in frame.f_code.co_filename


class Body:
    """Statements of a loop, and the variables that they start from."""

    def __init__(
        self,
        now: Sequence[tuple[FrameType, int]],
        before: Iterable[Moment],
        marks: Sequence[dict[int, int]],
        delivered: Sequence[Any],
    ) -> None:
        """Find it.

        Args:
            now: where the script stands, innermost first. before: where it stood when the step before had ended.
            marks: what must be in it: of each backward pass of this step, or else of the model's first call, id of a
                frame -> line at which it stood. delivered: what data loaders gave since the step before.

        Raises:
            NoBodyError: there is none.
        """
        if not marks:
            raise NoBodyError("neither the model's call nor a backward pass was seen in this step")
        for position, (frame, line) in enumerate(now):
            earlier = next((m for m in before if m.number == id(frame) and m.code is frame.f_code), None)
            for loop, statements in _candidates(frame.f_code, line, None if earlier is None else earlier.line):
                if loop is None and not any(_loops(one.f_code, at) for one, at in now[position + 1 :]):
                    continue  # a function that is called once: its beginning is the script's
                if loop is None and not _arguments(frame.f_code).isdisjoint(_assigned(statements)):
                    continue  # what it was called with is gone; where it is called, that is there
                num_inside = sum(_holds(statements, one.get(id(frame))) for one in marks)
                if num_inside == 0:
                    continue  # a loop over optimizers, say
                if num_inside < len(marks) or _are_of_several_rounds(statements, id(frame), marks):
                    raise NoBodyError("not all of the step's backward passes were made in this round of its loop")
                self._take(loop, statements, Moment.of(frame, line), earlier, delivered)
                return
        raise NoBodyError("the step stands in no loop whose source is there")

    def _take(
        self,
        loop: Loop | None,
        statements: list[ast.stmt],
        now: Moment,
        earlier: Moment | None,
        delivered: Sequence[Any],
    ) -> None:
        if any(isinstance(node, _CANNOT) for node in _own_nodes(statements)):
            raise NoBodyError("the loop's body waits or yields, or writes to a function around it")
        self.source = f"{now.code.co_filename}:{statements[0].lineno}-{statements[-1].end_lineno}"
        assigned = _assigned(statements)
        self._variables = now.globals | now.values
        if earlier is not None:
            self._variables |= {name: earlier.values[name] for name in assigned if name in earlier.values}
        if isinstance(loop, ast.For) and delivered and statements[0] is loop.body[0]:
            batch = _unpacked(_target_of_batch(loop), delivered[-1])  # what the body made of it is not what it got
            self._variables |= {name: value for name, value in batch.items() if name in assigned}
        self._code = _compiled(statements, assigned, now.code.co_filename)

    def run(self) -> None:
        """Run it, once.

        Raises:
            BaseException: what it raises.
        """
        exec(self._code, self._variables)
        self._variables["__step__"]()


# Finding the statements


def _candidates(code: CodeType, line: int, earlier: int | None) -> Iterator[tuple[Loop | None, list[ast.stmt]]]:
    """Of a function: the statements of each loop around a line up to it, innermost loop first, then those of the whole
    function. They begin behind the line `earlier` where that is above."""
    for loop in _loops(code, line):
        yield loop, _slice(loop.body, line, earlier)
    if code.co_name != "<module>":
        body = _body(code)
        if _holds(body, line):
            yield None, _slice(body, line, None)


def _loops(code: CodeType, line: int) -> list[Loop]:
    """The loops of a function around a line, innermost first."""
    statements = _around(_body(code), line)
    return [one for one in statements if isinstance(one, (ast.For, ast.While)) and _holds(one.body, line)][::-1]


@lru_cache(maxsize=64)
def _body(code: CodeType) -> list[ast.stmt]:
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return []
    return tree.body if code.co_name == "<module>" else _function(tree, code)


def _function(tree: ast.Module, code: CodeType) -> list[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first == code.co_firstlineno:
                return node.body
    return []


def _around(body: Sequence[ast.AST], line: int) -> Iterator[ast.stmt]:
    """The statements that hold a line, from the outermost to the innermost; not into functions."""
    for one in body:
        lines = getattr(one, "lineno", None), getattr(one, "end_lineno", None)
        is_clause = isinstance(one, ast.match_case)
        if not is_clause and (lines[0] is None or lines[1] is None or not lines[0] <= line <= lines[1]):
            continue
        if isinstance(one, ast.stmt):
            yield one
        if not isinstance(one, _SCOPES):
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _around(getattr(one, field, []), line)


def _holds(statements: Sequence[ast.stmt], line: int | None) -> bool:
    return line is not None and bool(statements) and statements[0].lineno <= line <= (statements[-1].end_lineno or 0)


def _are_of_several_rounds(statements: Sequence[ast.stmt], frame: int, marks: Sequence[dict[int, int]]) -> bool:
    """Whether a line of this frame made two backward passes and stands in no loop of its own: micro-batches, each of
    them a round of the loop around."""
    lines = [mark[frame] for mark in marks if next(iter(mark), None) == frame]  # made here, in no function called here
    twice = {line for line in lines if lines.count(line) > 1}
    return any(not _is_looped(statements, line) for line in twice)


def _is_looped(statements: Sequence[ast.stmt], line: int) -> bool:
    around = list(_around(statements, line))
    return any(isinstance(one, (ast.For, ast.While)) for one in around) or any(
        isinstance(node, _COMPREHENSIONS) for node in ast.walk(around[-1])
    )


def _slice(body: list[ast.stmt], line: int, earlier: int | None) -> list[ast.stmt]:
    """Up to the statement of `line`; from behind that of `earlier`, where it is above."""
    # The last of a line: which statement of `loss.backward(); optimizer.step()` a frame stands in is not known.
    last = max(i for i, one in enumerate(body) if _holds([one], line))
    first = 0
    if earlier is not None and earlier < line:
        first = max((i + 1 for i, one in enumerate(body) if _holds([one], earlier)), default=0)
    return body[first if first <= last else 0 : last + 1]


# Variables


def _own_nodes(statements: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Nodes of this scope: functions, classes and comprehensions that stand in it come without what is in them."""
    ahead = list(statements)
    while ahead:
        node = ahead.pop()
        yield node
        if not isinstance(node, (*_SCOPES, *_COMPREHENSIONS)):
            ahead += ast.iter_child_nodes(node)
        elif isinstance(node, _COMPREHENSIONS):
            ahead += [one for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]


def _assigned(statements: Sequence[ast.stmt]) -> list[str]:
    names: set[str] = set()
    for node in _own_nodes(statements):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return sorted(names)


def _arguments(code: CodeType) -> set[str]:
    num_starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + num_starred])


def _target_of_batch(loop: ast.For) -> ast.expr:
    """What a round's batch is bound to: all that the loop binds, or what stands behind the number of `enumerate`."""
    of = loop.iter
    counts = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "enumerate"
    wraps = isinstance(of, ast.Call) and bool(of.args) and isinstance(of.args[0], ast.Call)
    if wraps and isinstance(of, ast.Call):  # tqdm(enumerate(loader))
        inner = of.args[0]
        assert isinstance(inner, ast.Call)
        counts = counts or (isinstance(inner.func, ast.Name) and inner.func.id == "enumerate")
    if counts and isinstance(loop.target, ast.Tuple) and len(loop.target.elts) == 2:
        return loop.target.elts[1]
    return loop.target


def _unpacked(target: ast.expr, value: Any) -> dict[str, Any]:
    """Name -> value where `target = value` would bind it; empty where they do not match."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, (ast.Tuple, ast.List)) or not isinstance(value, (list, tuple)):
        return {}
    if len(target.elts) != len(value):
        return {}
    return {k: v for t, one in zip(target.elts, value, strict=True) for k, v in _unpacked(t, one).items()}


def _compiled(statements: list[ast.stmt], assigned: list[str], filename: str) -> CodeType:
    """A function `__step__` whose variables are global: they live in the copy that it is run with."""
    first, last = statements[0], statements[-1]
    declared = {name for node in _own_nodes(statements) if isinstance(node, ast.Global) for name in node.names}
    kept = [one for one in statements if not isinstance(one, ast.Global)]
    names = sorted({*assigned, *declared})
    once = ast.For(ast.Name("__once__", ast.Store()), ast.Tuple([ast.Constant(None)], ast.Load()), kept, [], None)
    body: list[ast.stmt] = [ast.Global(names)] if names else []
    function = ast.parse("def __step__(): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = [*body, once]
    for node in (function, once, once.target, once.iter, *body):
        ast.copy_location(node, first)
        node.end_lineno = last.end_lineno  # type: ignore[attr-defined]
    ast.fix_missing_locations(function)
    try:
        return compile(ast.Module([function], []), filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise NoBodyError(f"a copy of the loop's body does not compile ({error})") from None
