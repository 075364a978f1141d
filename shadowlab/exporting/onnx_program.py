"""Programs in ONNX, by torch's exporter through onnxscript; run by onnxruntime."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.errors import MissingDependencyError
from shadowlab.exporting.programs import Program, Run
from shadowlab.exporting.torch_program import traced_program

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 2_000_000_000
"""Of a model in one file: protobuf ends at 2 GiB. Larger ones keep their weights in a file next to it."""


class OnnxFormat:
    """A `ProgramFormat` of ONNX."""

    name, suffix = "ONNX", ".onnx"

    def write(self, program: Program, file: Path) -> None:
        """Trace `program` and write it to `file`; weights beyond 2 GB in `NAME.onnx.data` next to it."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in program.module.state_dict().values())
        with _quietly():
            converted = torch.onnx.export(
                traced_program(program),
                input_names=list(program.inputs),
                output_names=[program.output],
                dynamo=True,
                verbose=False,
            )
            assert converted is not None
            converted.save(file, external_data=size > MOST_BYTES)

    def load(self, file: Path) -> Run:
        """The program in a file: tensors (B, ...) by the names of its inputs to the output (B, ...)."""
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            return torch.from_numpy(found)

        return run

    def versions(self) -> dict[str, str]:
        return {name: importlib.import_module(name).__version__ for name in PACKAGES}


def require_onnx() -> None:
    """Raise MissingDependencyError unless all packages of the extra `export` are there."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"--to onnx needs {', '.join(PACKAGES)} ({name}: {error}): pip install 'shadowlab[export]'"
            ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter says of itself: optional packages that are absent, renamed functions."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
