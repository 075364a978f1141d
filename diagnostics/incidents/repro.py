"""The script of an incident that runs the culprit operator alone, and the operands it needs."""

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from diagnostics.files import replace_text
from diagnostics.tracing import OperatorCall


def write_repro(place: Path, headline: str, culprit: OperatorCall) -> None:
    """Write `operator.pt` (the operator's name, its arguments on the CPU) and `repro.py` into the folder `place`.

    The script is `template.py` as it stands, below a line with `headline`.
    """
    # A memory format changes no value, and torch cannot save one; a generator does not load with weights_only.
    unsaved = (torch.memory_format, torch.Generator)
    call = {
        "operator": str(culprit.func),  # such as aten.log.default
        "args": list(culprit.args),
        "kwargs": {key: value for key, value in culprit.kwargs.items() if not isinstance(value, unsaved)},
        "num_threads": torch.get_num_threads(),
    }
    torch.save(tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, call), place / "operator.pt")
    template = files("diagnostics.incidents").joinpath("template.py").read_text(encoding="utf-8")
    one_line = " ".join(headline.split())  # a name in it may hold anything
    replace_text(place / "repro.py", f"# {one_line}\n{template}")
