"""What a step's code has at hand that a repetition must find as it was: generators, accelerators; and iterators.

Looked for in the callable's closure, the globals and defaults that its code names, what its methods are bound to, the
frame of a loop's own body, and the batch; a few levels deep, so that it takes a fraction of a millisecond.
"""

import random
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diagnostics.patching import variables_of

Kind = Literal[
    "", "generator", "accelerator", "iterator", "function", "method", "partial", "mapping", "items", "object"
]

_ATOMS = (int, float, str, bytes, type(None), complex, range, slice, type, ModuleType, BuiltinFunctionType, Tensor)
_LIBRARIES = (
    *("torch", "numpy", "accelerate", "logging", "pathlib", "argparse", "tqdm", "wandb", "builtins"),
    "diagnostics",
)


@dataclass(frozen=True)
class _Reach:
    """How far a look goes."""

    depth: int
    num_values: int
    num_items: int
    """Of one container."""
    into_modules: bool


_NEAR, _FAR = _Reach(3, 300, 16, into_modules=False), _Reach(6, 5_000, 1_000, into_modules=True)


@dataclass
class Surroundings:
    """What was found."""

    generators: list[Any] = field(default_factory=list)
    """torch's, NumPy's and Python's, but for those that everybody shares."""
    accelerators: list[Any] = field(default_factory=list)
    """accelerate's."""
    iterators: list[str] = field(default_factory=list)
    """Names of iterators, where the code calls `next`."""

    def add(self, others: "Surroundings") -> None:
        """With what somebody else knows, each object once."""
        for mine, theirs in ((self.generators, others.generators), (self.accelerators, others.accelerators)):
            known = {id(one) for one in mine}
            mine += [one for one in theirs if id(one) not in known]
        self.iterators += [name for name in others.iterators if name not in self.iterators]


def named(generators: Iterable[Any], accelerator: Any) -> Surroundings:
    """What the caller names; accelerator: None for none.

    Raises:
        TypeError: something is neither.
    """
    found = Surroundings(list(generators), [] if accelerator is None else [accelerator])
    for generator in found.generators:
        if not is_generator(generator):
            raise TypeError(f"generators: those of torch, NumPy and Python, not {type(generator).__name__}")
    if accelerator is not None and not is_accelerator(accelerator):
        raise TypeError(f"accelerator: accelerate's Accelerator, not {type(accelerator).__name__}")
    return found


def around_callable(step: Any, batch: Any, *, is_thorough: bool) -> Surroundings:
    """What a step that is called has at hand. is_thorough: look into models, too, which takes a while."""
    return _Look(is_thorough).run([("step", step), ("batch", batch)])


def around_body(frame: FrameType, batch: Any, *, is_thorough: bool) -> Surroundings:
    """What a step in the body of a loop has at hand, in this frame."""
    look, code = _Look(is_thorough), frame.f_code
    look.read(code)
    own = [] if frame.f_locals is frame.f_globals else list(variables_of(frame).items())
    named = [(name, frame.f_globals[name]) for name in code.co_names if name in frame.f_globals]
    return look.run([*own, *named, ("batch", batch)])


def is_generator(value: Any) -> bool:
    """Whether it is a random number generator whose state can be put back."""
    cls: type = type(value)
    return _is_generator(cls)


@lru_cache(maxsize=4096)
def _is_generator(cls: type) -> bool:
    if issubclass(cls, (torch.Generator, random.Random)):
        return not issubclass(cls, random.SystemRandom)
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and issubclass(cls, (numpy.Generator, numpy.RandomState, numpy.BitGenerator))


def is_accelerator(value: Any) -> bool:
    """Whether it is accelerate's `Accelerator`."""
    return type(value).__name__ == "Accelerator" and type(value).__module__ == "accelerate.accelerator"


@lru_cache(maxsize=4096)
def _kind(cls: type) -> Kind:
    """What is to be done with the values of a class."""
    for kind, classes in (
        ("", _ATOMS),
        ("method", (MethodType,)),
        ("partial", (partial,)),
        ("function", (FunctionType,)),
        ("mapping", (Mapping,)),
        ("items", (list, tuple, set, deque)),
    ):
        if issubclass(cls, classes):
            return kind  # type: ignore[return-value]
    if hasattr(cls, "__next__"):
        return "iterator"
    if cls.__module__ == "accelerate.accelerator":
        return "object"
    is_library = cls.__module__.partition(".")[0] in _LIBRARIES
    return "" if is_library and not issubclass(cls, nn.Module) else "object"


class _Look:
    """Breadth first, so that what lies near is found first."""

    def __init__(self, is_thorough: bool) -> None:
        self._reach = _FAR if is_thorough else _NEAR
        self._names = {"forward", "__call__"}
        """What the code uses; methods among it are code, too."""
        self._found = Surroundings()

    def run(self, start: list[tuple[str, Any]]) -> Surroundings:
        level = start
        met: dict[int, Any] = {}  # so that an id stays its object's
        for _ in range(self._reach.depth + 1):
            following: list[tuple[str, Any]] = []
            for name, value in level:
                if isinstance(value, BuiltinFunctionType) and is_generator(value.__self__):
                    value = value.__self__  # `uniform = generator.random`
                cls: type = type(value)
                kind = "generator" if _is_generator(cls) else _kind(cls)
                if not kind or id(value) in met or len(met) >= self._reach.num_values:
                    continue
                met[id(value)] = value
                if kind == "generator":
                    self._found.generators.append(value)
                elif kind == "iterator":
                    self._found.iterators.append(name)
                elif is_accelerator(value):
                    self._found.accelerators.append(value)
                else:
                    following += self._inside(kind, value)
            level = following
        if not self._names & {"next", "__next__"}:
            self._found.iterators.clear()
        return self._found

    def read(self, code: CodeType) -> None:
        """Note what a piece of code calls."""
        self._names.update(code.co_names)

    def _inside(self, kind: Kind, value: Any) -> Iterable[tuple[str, Any]]:
        limit = self._reach.num_items
        if kind == "function":
            return self._inside_function(value)
        if kind == "method":
            return (("self", value.__self__), (value.__name__, value.__func__))
        if kind == "partial":
            return [("", value.func), *(("", one) for one in value.args), *value.keywords.items()]
        if kind == "mapping":
            return [(str(key), item) for key, item in islice(list(value.items()), limit)]
        if kind == "items":
            return [("", item) for item in islice(value, limit)]
        inside = self._inside_module(value) if isinstance(value, nn.Module) else self._attributes(value)
        return [*inside, *self._methods(type(value))]

    def _inside_module(self, module: nn.Module) -> Iterable[tuple[str, Any]]:
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        is_library = type(module).__module__.startswith("torch.")
        own = [] if is_library else [pair for pair in vars(module).items() if not pair[0].startswith("_")]
        return [*own, *(children if self._reach.into_modules else ())]

    def _methods(self, cls: type) -> Iterable[tuple[str, Any]]:
        if cls.__module__.startswith("torch."):
            return ()
        names = [(kind, name) for kind in cls.__mro__ for name in vars(kind).keys() & self._names]
        return [(name, vars(kind)[name]) for kind, name in names if isinstance(vars(kind)[name], FunctionType)]

    def _attributes(self, value: Any) -> Iterable[tuple[str, Any]]:
        own = list(islice(list(getattr(value, "__dict__", {}).items()), self._reach.num_items))
        slots = [slot for kind in type(value).__mro__ for slot in vars(kind).get("__slots__", ())]
        return [*own, *((slot, getattr(value, slot, None)) for slot in slots if isinstance(slot, str))]

    def _inside_function(self, function: FunctionType) -> Iterable[tuple[str, Any]]:
        code, names = function.__code__, function.__globals__
        if "site-packages" in code.co_filename:
            return ()
        self.read(code)
        found = [(name, names[name]) for name in code.co_names if name in names]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            try:
                found.append((name, cell.cell_contents))
            except ValueError:  # not assigned yet
                continue
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                self.read(inner)
                found += [(name, names[name]) for name in inner.co_names if name in names]
        return [
            *found,
            *(("", value) for value in function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).items(),
        ]
