"""Whether an exception that ended a step may come of a value that is not finite, asked before anything is repeated.

The value itself may be gone: it lay between two operators. What is left are the frames that the exception passed
through, its words, the line that raised it, and what the model and the batch hold.
"""

import linecache
import math
import re
import sys
from collections.abc import Iterator, Mapping
from traceback import walk_tb
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.tensors import any_bad, tensors_in, values_of, wide
from diagnostics.watching.guarded import Guarded

# What no number makes: a second run would teach nothing, and could do harm.
_NEVER: tuple[type[Exception], ...] = (
    NonFiniteError,  # says it all
    *(StopIteration, StopAsyncIteration, OSError, EOFError, BufferError, MemoryError, torch.OutOfMemoryError),
    *(KeyError, AttributeError, NameError, TypeError, ImportError, SyntaxError, UnicodeError, ReferenceError),
    *(NotImplementedError, RecursionError, torch.AcceleratorError),
)
_OF_NUMBERS = (torch.linalg.LinAlgError, ArithmeticError)  # a matrix, an int or a sum of NaN
_OF_FINITE_NUMBERS = (ZeroDivisionError, OverflowError)  # of Python's own: `math.exp(1e4)`; `int(inf)` has the word
_WORDS = re.compile(r"\b(nan|nans|inf|infs|infinity|infinite)\b|finite|isnan|isinf", re.IGNORECASE)
_CHECKS = re.compile(r"finite|isnan|isinf")  # and not `inf`, which code writes for many a reason
_MAX_DEPTH = 3  # of containers and attributes below a local variable
_MAX_VALUES = 20_000


def may_be_numerical(error: BaseException, guarded: Guarded, batch: Any) -> bool:
    """Whether repeating the step under tracing may explain the exception. Reads on the host.

    Never: what is no `Exception` (but for the `sys.exit` of a function that holds a bad value), and kinds that no
    number causes (a missing file, an unknown key or name, memory, a device that is lost, the end of an iterator). Else
    it must give a sign: a kind that numbers cause, words that speak of NaN or infinity, code that looks for them, or a
    value that is not finite in a frame it passed through, in the model, its gradients or the batch.
    """
    try:
        if isinstance(error, SystemExit):
            return _any_bad_in_frames(_leaves(error.__traceback__))
        cause = error.__cause__ or error.__context__
        if isinstance(error, Exception) and isinstance(cause, Exception) and not isinstance(error, _NEVER):
            return _may_be(error, guarded, batch) or _may_be(cause, guarded, batch)
        return isinstance(error, Exception) and _may_be(error, guarded, batch)
    except RuntimeError:  # the device answers no more: nothing could be repeated
        return False


def _may_be(error: Exception, guarded: Guarded, batch: Any) -> bool:
    if isinstance(error, _NEVER) or str(error).startswith("CUDA error"):
        return False
    if isinstance(error, Warning) and not isinstance(error, RuntimeWarning):
        return False
    if isinstance(error, _OF_NUMBERS) and not isinstance(error, _OF_FINITE_NUMBERS):
        return True
    if _WORDS.search(str(error)) or _CHECKS.search(_code(error.__traceback__)):
        return True
    return _any_bad_in_frames(error.__traceback__) or _holds_bad(guarded, batch)


def _last(traceback: TracebackType | None) -> TracebackType | None:
    """The end of a traceback: the frame that raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _leaves(traceback: TracebackType | None) -> TracebackType | None:
    """The frame that called `sys.exit`, which a library may have replaced by a function of its own, as wandb does."""
    own = getattr(getattr(sys.exit, "__func__", sys.exit), "__code__", None)
    while traceback is not None and traceback.tb_next is not None:
        if own is not None and traceback.tb_next.tb_frame.f_code is own:
            return traceback
        traceback = traceback.tb_next
    return traceback


def _code(traceback: TracebackType | None) -> str:
    """The line of code that raised, and the names that its function uses."""
    last = _last(traceback)
    if last is None:
        return ""
    code = last.tb_frame.f_code
    return " ".join([linecache.getline(code.co_filename, last.tb_lineno), *code.co_names])


def _holds_bad(guarded: Guarded, batch: Any) -> bool:
    """Whether parameters, gradients or buffers are not finite, or the batch holds NaN (an infinity may be meant)."""
    held = [*guarded.parameters, *guarded.gradients()]
    if any_bad(values_of(held)) or guarded.buffers.bad():
        return True
    return any(bool(torch.isnan(values).any()) for values in values_of(tensors_in(batch)))


def _any_bad_in_frames(traceback: TracebackType | None) -> bool:
    """Whether a local variable of a frame holds a tensor or an array that is not finite, or the number NaN."""
    tensors: dict[int, Tensor] = {}
    num_seen = 0
    for frame, _ in walk_tb(traceback):
        for value in _values(list(frame.f_locals.values())):
            num_seen += 1
            if num_seen > _MAX_VALUES:
                break
            if isinstance(value, Tensor):
                tensors[id(value)] = value
            elif (isinstance(value, float) and math.isnan(value)) or _is_bad_array(value):
                return True
    return any(map(_is_bad, values_of(tensors.values()))) or any(map(_is_cast_nan, tensors.values()))


def _values(start: list[Any]) -> Iterator[Any]:
    """Values in nested containers and in attributes of plain objects; modules are looked at elsewhere."""
    ahead = [(value, 0) for value in start]
    met: set[int] = set()
    while ahead:
        value, depth = ahead.pop()
        if id(value) in met or isinstance(value, (nn.Module, type, str, bytes, int)):
            continue
        met.add(id(value))
        yield value
        if depth < _MAX_DEPTH and not isinstance(value, (Tensor, float)):
            if isinstance(value, Mapping):
                ahead += [(item, depth + 1) for item in value.values()]
            elif isinstance(value, (list, tuple)):
                ahead += [(item, depth + 1) for item in value[:_MAX_VALUES]]
            elif type(value).__module__ not in ("builtins", "types") and hasattr(value, "__dict__"):
                ahead += [(item, depth + 1) for item in vars(value).values()]


def _is_bad_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.kind not in "fc":
        return False
    return not bool(numpy.isfinite(value).all())


def _is_bad(values: Tensor) -> bool:
    """Whether strided values of any shape are not finite, but for a mask: -inf among others."""
    if not any_bad([values]):
        return False
    return values.is_complex() or values.numel() == 1 or not bool((wide(values) < torch.inf).all())


def _is_cast_nan(tensor: Tensor) -> bool:
    """Whether an integer tensor holds what a cast makes of NaN and of infinity, its dtype's smallest number."""
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.is_meta or not tensor.numel():
        return False
    return tensor.layout is torch.strided and int(tensor.min()) == torch.iinfo(tensor.dtype).min
