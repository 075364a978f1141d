"""Nested values of any optimizer as JSON and named tensors, and back.

A tree is what stands in JSON for a value:

    null, true, 3, 0.5, "text"          the same
    {"float": "nan"}                    a float that JSON has no number for: nan, inf, -inf
    {"tensor": NAME}                    a tensor of the file; also "cpu": true where it lies on the host and its
                                        parameter elsewhere
    {"subclass": CLASS, "parts": {..}}  a tensor made of tensors (`__tensor_flatten__`): 8-bit states, for instance
    [..], {"tuple": [..]}               a list, a tuple
    {"dict": {..}}, {"pairs": [[..]]}   a dictionary; the latter where not all keys are text

A file gives values alone. Which class a tensor has, and how it is put together, is what the running optimizer made:
names of classes in a file are compared, never looked up.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from shadowlab.distributed import assign, local
from shadowlab.errors import UserError
from shadowlab.training.saved_file import HUGE, shown

FIX = "resume with the model and the optimizer that the run had, or start anew with another --run"
_ABSENT = object()  # the running optimizer has nothing in this place
_SCALARS = (type(None), bool, int, float, str)
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    torch.bool,
)  # of every supported version of safetensors


def is_composed(value: Any) -> bool:
    """Whether this is a tensor subclass made of tensors. A DTensor is not: it is a tensor in several places."""
    return isinstance(value, Tensor) and not isinstance(value, DTensor) and is_traceable_wrapper_subclass(value)


def is_plain(value: Any) -> bool:
    """Whether this is one strided tensor, sharded or not, that a safetensors file can hold."""
    held = local(value) if isinstance(value, Tensor) else value
    return type(held) in (Tensor, nn.Parameter) and held.layout is torch.strided and held.dtype in _DTYPES


class TreeWriter:
    """Makes trees and collects their tensors under names that no two of them share.

    Args:
        strict: False leaves out what cannot be written, and takes a sharded tensor that is made of tensors apart.

    Attributes:
        tensors: name -> tensor, without its graph, sharing memory with the value. One that occurs twice is here once.
        floats: name -> Python float.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.floats: dict[str, float] = {}
        self._strict = strict
        self._names: dict[tuple[Any, ...], str] = {}

    def write(self, value: Any, path: str, device: torch.device | None) -> Any:
        """The tree of `value`.

        Args:
            path: names it. device: of the parameter that it belongs to.

        Raises:
            UserError: JSON and safetensors cannot hold it.
        """
        if isinstance(value, Tensor):
            return self._tensor(value, path, device)
        if isinstance(value, float):
            self.floats[path] = value
            return value if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, Mapping) and all(isinstance(key, _SCALARS) for key in value):
            items = [(key, self.write(item, _below(path, key), device)) for key, item in value.items()]
            return {"dict": dict(items)} if all(type(key) is str for key in value) else {"pairs": items}
        if isinstance(value, (list, tuple)):
            trees = [self.write(item, _below(path, i), device) for i, item in enumerate(value)]
            return trees if isinstance(value, list) else {"tuple": trees}
        if self._strict:
            raise UserError(
                f"optimizer state {path} is a {type(value).__name__}, which a checkpoint cannot hold; use an optimizer "
                "whose state is made of tensors, numbers, text, lists and dictionaries"
            )
        return None

    def _tensor(self, value: Tensor, path: str, device: torch.device | None) -> Any:
        held = local(value)
        if is_composed(value) or (is_composed(held) and not self._strict):
            names = held.__tensor_flatten__()[0]  # type: ignore[attr-defined]
            parts = {name: self.write(getattr(held, name), _below(path, name), device) for name in names}
            return {"subclass": type(held).__name__, "parts": parts}
        if not is_plain(value):
            if not self._strict:
                return None
            kind = f"{type(held).__name__} in shards" if is_composed(held) else f"{held.layout} {held.dtype} tensor"
            raise UserError(
                f"optimizer state {path} is a {kind.replace('torch.', '')}, which a checkpoint cannot hold; use an "
                "optimizer with plain tensors" + (", or distributed.strategy=ddp" if is_composed(held) else "")
            )
        name = self._named(value.detach(), path)
        on_host = held.device.type == "cpu" and device is not None and device.type != "cpu"
        return {"tensor": name} | ({"cpu": True} if on_host else {})

    def _named(self, tensor: Tensor, path: str) -> str:
        held = local(tensor)
        key = (held.data_ptr(), held.device, held.dtype, held.shape, held.stride(), tensor.shape)
        if held.numel() and key in self._names:
            return self._names[key]
        while path in self.tensors:  # an odd name of a parameter
            path += "~"
        self.tensors[path] = tensor
        self._names[key] = path
        return path


class TreeReader:
    """Gives values of a file the structure and the types of what the running optimizer made.

    Args:
        tensors: name -> tensor on the CPU, as saved. file: named in errors.
        converts: floating tensors take the dtype that the running optimizer has; otherwise dtypes must be the same.
    """

    def __init__(self, tensors: Mapping[str, Tensor], file: Path, *, converts: bool = False) -> None:
        self._tensors, self._file, self._converts = tensors, file, converts
        self._made: dict[str, Tensor] = {}

    def unread(self) -> list[str]:
        """Names of tensors that no tree has asked for."""
        return sorted(self._tensors.keys() - self._made.keys())

    def read(self, tree: Any, path: str, device: torch.device, live: Any = _ABSENT) -> Any:
        """The value that `tree` stands for.

        Args:
            path: names it in errors. device: for tensors that the running optimizer does not have yet.
            live: what the running optimizer has in its place. It is not written to.

        Raises:
            UserError: it does not fit `live`. ValueError: this is no tree.
        """
        match tree:
            case None | bool() | int() | float() | str():
                fits, value = _may_follow(live, tree), tree
            case {"float": "nan" | "inf" | "-inf" as text}:
                fits, value = _may_follow(live, float(text)), float(text)
            case {"tensor": str(name)} if name in self._tensors:
                return self._tensor(name, path, torch.device("cpu") if tree.get("cpu") else device, live)
            case {"subclass": str(kind), "parts": dict(parts)}:
                return self._composed(kind, parts, path, device, live)
            case {"dict": dict(items)}:
                return self._mapping(items.items(), path, device, live)
            case {"pairs": list(pairs)} if all(_is_pair(pair) for pair in pairs):
                return self._mapping(pairs, path, device, live)
            case {"tuple": list(trees)}:
                return self._sequence(trees, path, device, live, tuple)
            case list(trees):
                return self._sequence(trees, path, device, live, list)
            case _:
                raise ValueError(f"{path}: {str(tree)[:60]} describes no optimizer state")
        if not fits:
            raise self._unfit(path, f"is {shown(value)}", live)
        return value

    def _tensor(self, name: str, path: str, device: torch.device, live: Any) -> Tensor:
        saved = self._tensors[name]
        made = self._made.get(name)
        if live is _ABSENT or isinstance(live, _SCALARS):  # made by a later step than the first
            if made is None:
                made = self._made[name] = saved.to(device, copy=True)
            return made
        if not is_plain(live):
            raise self._unfit(path, f"is a tensor {_words(saved)}", live)
        both_float = saved.is_floating_point() and live.is_floating_point()
        if saved.shape != live.shape or (saved.dtype != live.dtype and not (both_float and self._converts)):
            raise self._unfit(path, f"is {_words(saved)}", live)
        if made is None or not _alike(made, live):
            made = self._made[name] = torch.empty_like(live, requires_grad=False)
            assign(made, saved, like=live)
        return nn.Parameter(made, live.requires_grad) if isinstance(live, nn.Parameter) else made

    def _composed(self, kind: str, parts: dict[str, Any], path: str, device: torch.device, live: Any) -> Tensor:
        if not is_composed(live) or type(live).__name__ != kind:
            raise self._unfit(path, f"is a {kind}", live)
        names, context = live.__tensor_flatten__()
        if set(names) != set(parts):
            raise self._unfit(path, f"is made of {', '.join(parts)}", live)
        inner = {name: self.read(parts[name], _below(path, name), device, getattr(live, name)) for name in names}
        return type(live).__tensor_unflatten__(inner, context, live.shape, live.stride())

    def _mapping(self, items: Iterable[Any], path: str, device: torch.device, live: Any) -> Any:
        found = dict(items)
        if not _is_free(live) and not isinstance(live, Mapping):
            raise self._unfit(path, "is a dictionary", live)
        known = {} if _is_free(live) else live
        missing = [key for key in known if key not in found]
        if missing:
            raise UserError(f"{self._file}: {_below(path, missing[0])} is missing, the optimizer has it; {FIX}")
        values = {
            key: self.read(found[key], _below(path, key), device, known.get(key, _ABSENT))
            for key in [*known, *(key for key in found if key not in known)]
        }
        if type(known) is dict:
            return values
        box = copy.copy(live)  # a dictionary of another class
        box.clear()
        box.update(values)
        return box

    def _sequence(
        self, trees: list[Any], path: str, device: torch.device, live: Any, kind: Callable[[list[Any]], Any]
    ) -> Any:
        if not _is_free(live) and not isinstance(live, (list, tuple)):
            raise self._unfit(path, f"has {len(trees)} elements", live)
        # A list of another length has grown since the first step: its elements have no counterparts.
        alike = isinstance(live, (list, tuple)) and len(live) == len(trees)
        counterparts: Any = live if alike else [_ABSENT] * len(trees)
        values = [
            self.read(tree, _below(path, i), device, one)
            for i, (tree, one) in enumerate(zip(trees, counterparts, strict=True))
        ]
        if not hasattr(live, "_make"):
            return kind(values)
        if not alike:
            raise self._unfit(path, f"has {len(values)} elements", live)
        return live._make(values)  # a named tuple

    def _unfit(self, path: str, says: str, live: Any) -> UserError:
        has = "nothing there" if live is _ABSENT else _words(live)
        return UserError(f"{self._file}: {path} {says}, the optimizer has {has}; {FIX}")


def _is_free(live: Any) -> bool:
    """Whether the running optimizer has nothing in a place yet."""
    return live is _ABSENT or live is None


def _may_follow(live: Any, value: Any) -> bool:
    """Whether an optimizer that has `live` may later have the scalar `value` in its place."""
    if _is_free(live) or (value is None and not isinstance(live, _SCALARS)):
        return True
    if isinstance(live, float) and type(value) is int and abs(value) >= HUGE:  # no float
        return False
    if isinstance(live, bool) or isinstance(value, bool):  # to Python they are numbers
        return isinstance(live, bool) and isinstance(value, bool)
    kind = str if isinstance(live, str) else (int, float)
    return isinstance(live, kind) and isinstance(value, kind)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.device, one.dtype, isinstance(one, DTensor)) == (other.device, other.dtype, isinstance(other, DTensor))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], _SCALARS)


def _below(path: str, key: Any) -> str:
    """`path/key`, with the key's own slashes escaped as in JSON pointers."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    return f"{path}/{text.encode('utf-8', 'backslashreplace').decode('utf-8')}"


def _words(value: Any) -> str:
    """Of a tensor shape and dtype, of other values their class."""
    if isinstance(value, Tensor):
        kind = f"{type(value).__name__} " if is_composed(value) else ""
        return f"{kind}{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"{value!r}" if isinstance(value, _SCALARS) else f"a {type(value).__name__}"
