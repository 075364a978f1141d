"""Dropout that a model calls as a function, seen where its operators run."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics.modules import walk
from diagnostics.patching import variables_of


class Dropouts(TorchDispatchMode):
    """Tells of each operator that drops out. Runs every operator as it is, and reads nothing."""

    def __init__(self, root: nn.Module, tell: Callable[[str], None]) -> None:
        """tell: gets the call and the module that made it, `F.dropout in encoder.drop`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._tell = root, tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _drops(func.overloadpacket.__name__, args, kwargs):
            self._tell(f"F.dropout in {_caller(self._root)}")
        return func(*args, **kwargs)


def _drops(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is dropout with training=True: fused, or made of a mask that is drawn in place."""
    if name == "native_dropout":
        return args[1] > 0 and (len(args) < 3 or args[2] is not False)
    if name == "bernoulli_":
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        return isinstance(p, float) and 0 < p < 1 and args[0].is_floating_point()
    return False


def _caller(root: nn.Module) -> str:
    """Name of the innermost module whose code runs, the class's where it is the model itself."""
    names = {id(module): name for name, module in walk(root)}
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = names.get(id(variables_of(frame).get("self"))) if "self" in frame.f_code.co_varnames else None
        if name is not None:
            return name or type(root).__name__
        frame = frame.f_back
    return type(root).__name__
