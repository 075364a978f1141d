"""Options of a watch that somebody else constructs later: wrong ones are refused at once."""

import inspect
from collections.abc import Mapping
from typing import Any

from diagnostics.watching import Watch


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of them.

    Raises:
        TypeError: one is no option of `Watch`, or what the integration fills in itself.
    """
    known = [name for name in inspect.signature(Watch).parameters if name not in ("model", "optimizer")]
    for name in options:
        if name not in known:
            raise TypeError(f"{name}: not an option of Watch; those are {', '.join(known)}")
    return dict(options)
