"""The two forms of a watched step, and what is said to somebody who writes a third one."""

import sys
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any, NoReturn, TypeVar, cast

from diagnostics.patching import variables_of

ATTEMPTS = "    for attempt in watch.attempts(batch=batch):\n        with attempt:\n            ...the step..."
_STEP = "    loss = watch.step(lambda: train_one(batch), batch=batch)"
BOTH = f"write one of\n{_STEP}\n{ATTEMPTS}"

Method = TypeVar("Method", bound=Callable[..., Any])


def called_with_a_step(method: Method) -> Method:
    """A method that gets the step to run, which is neither a decorator nor a context manager.

    Raises:
        TypeError: it is used as one, or what it gets cannot be called without arguments.
    """
    return cast(Method, _Form(method))


class _Form:
    def __init__(self, method: Callable[..., Any]) -> None:
        self.__wrapped__, self.__doc__, self.__name__ = method, method.__doc__, method.__name__

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else _Bound(self.__wrapped__, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class _Bound:
    """The method of one object."""

    def __init__(self, method: Callable[..., Any], owner: Any) -> None:
        self.__wrapped__, self.__self__, self.__doc__ = method, owner, method.__doc__

    def __call__(self, step: Any = None, **options: Any) -> Any:
        if step is None or not callable(step):
            raise TypeError(f"watch.step takes the step, a function without arguments; {BOTH}")
        if isinstance(step, FunctionType):
            _check(step, sys._getframe(1))
        return self.__wrapped__(self.__self__, step, **options)

    def __enter__(self) -> NoReturn:
        raise TypeError(f"watch.step is no context manager, for a step may have to run twice; {BOTH}")

    def __exit__(self, *_: object) -> None: ...


def _check(step: FunctionType, caller: FrameType) -> None:
    code = step.__code__
    here = caller.f_lineno, caller.f_code.co_filename
    if code.co_name != "<lambda>" and (code.co_firstlineno, code.co_filename) == here and not _has(caller, step):
        raise TypeError(f"watch.step is no decorator: it runs a step, each time that it is called; {BOTH}")
    needed = code.co_argcount - len(step.__defaults__ or ())
    if needed > 0:
        names = ", ".join(code.co_varnames[:needed])
        raise TypeError(f"watch.step calls {step.__name__} without arguments, and it needs {names}; {BOTH}")


def _has(frame: FrameType, function: FunctionType) -> bool:
    """Whether a function has its name already, which one that is being decorated has not. Each line that is typed at
    Python's prompt is line 1 of the same file."""
    name = function.__name__
    return any(names.get(name) is function for names in (variables_of(frame), frame.f_globals))
