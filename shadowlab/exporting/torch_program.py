"""Programs of torch.export: `.pt2` files that torch alone loads and runs."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shadowlab.exporting.programs import Program, Run


class TorchFormat:
    """A `ProgramFormat` of torch.export."""

    name, suffix = "torch.export", ".pt2"

    def write(self, program: Program, file: Path) -> None:
        """Trace `program` and write it to `file`."""
        traced = traced_program(program)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
            torch.export.save(traced, file)

    def load(self, file: Path) -> Run:
        """The program in a file: tensors (B, ...) by the names of its inputs to the output (B, ...)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.export.load(file).module()

        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return module(*inputs.values())

        return run

    def versions(self) -> dict[str, str]:
        return {}


def traced_program(program: Program) -> torch.export.ExportedProgram:
    """The graph of a program's module, for any batch and size that its shapes allow."""
    return torch.export.export(program.module, tuple(program.inputs.values()), dynamic_shapes=program.shapes)
