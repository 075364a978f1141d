"""What a tool names as the origin of a non-finite value, scored generously.

A peer is right on a fault if anything that it names is the origin: the source line, the operator in the right module,
or, where the case's origin is a tensor, that tensor's name. Where a case states neither line nor operator, those of
`explain`'s verdict count as well, if that is right. A peer raises a false alarm if it names anything in a benign case.
"""

import contextlib
import importlib.metadata
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diagnostics import Verdict
from shadowlab.bench.corpus import Expected, Fault, Scene

# Names that tools give to the same operator.
_FAMILIES = (
    ("matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum", "rmatmul"),
    ("div", "truediv", "rtruediv", "itruediv", "rdiv", "true_divide", "reciprocal"),
    ("sub", "rsub", "isub", "subtract"),
    ("add", "radd", "iadd"),
    ("mul", "rmul", "imul", "multiply"),
    ("pow", "rpow", "ipow"),
    ("to_copy", "to", "half", "float", "bfloat16", "type_as", "copy", "double"),
    ("softmax", "log_softmax", "safe_softmax"),
    ("norm", "linalg_vector_norm", "vector_norm"),
    ("convolution", "conv1d", "conv2d", "conv3d"),
    ("native_batch_norm", "batch_norm", "batchnorm1d", "batchnorm2d"),
    ("nll_loss_forward", "nll_loss", "nll_loss_nd", "cross_entropy"),
)
_FAMILY = {name: family[0] for family in _FAMILIES for name in family}


@dataclass(frozen=True)
class Naming:
    """All that a tool names as origin."""

    operators: tuple[tuple[str, str | None], ...] = ()
    """(name, dotted module or None)."""
    sources: tuple[str, ...] = ()
    """`path:line`."""
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    """Parameters and inputs."""
    phase: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Peer:
    """A tool that is compared with `explain`."""

    name: str
    package: str
    name_origin: Callable[[Scene], Naming | None]
    """Runs the scene's step under the tool; None where it reports nothing."""

    @property
    def version(self) -> str | None:
        """None where the package is not installed."""
        try:
            return importlib.metadata.version(self.package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None


@dataclass(frozen=True)
class PeerResult:
    """What one tool said of one case."""

    right: bool | None
    """None where the case states no place."""
    named: Naming | None
    error: str | None = None
    """What the tool itself failed with."""
    in_module: bool | None = None
    """Whether the right module is named; None where the case states none."""


@dataclass(frozen=True)
class PeerReport:
    """A row of the table: counts over all cases."""

    name: str
    version: str | None
    missing: str | None
    """Why the tool did not run."""
    right: int
    stated: int
    in_module: int
    stated_modules: int
    named: int
    """Faults of which it said anything."""
    false_alarms: tuple[str, ...]
    num_benign: int
    errors: int


def run_peer(peer: Peer, fault: Fault, known: Verdict | None = None) -> PeerResult:
    """A fresh scene under one tool. known: a verdict whose place is right."""
    named, error = None, None
    try:
        with _restored():
            named = peer.name_origin(fault.build().start())
    except Exception as caught:  # a tool that breaks the step is counted, not forgiven
        error = f"{type(caught).__name__}: {caught}".splitlines()[0]
    if fault.expected is None:
        return PeerResult(named is None, named, error)
    right = _names_origin(named, fault.expected, fault.origin, known)
    return PeerResult(right, named, error, _names_module(named, fault.expected))


def summarise(peer: Peer, results: Sequence[tuple[str, bool, PeerResult | None]]) -> PeerReport:
    """results: (case, whether benign, what the tool said) of all cases; None where it did not run."""
    ran = [(name, benign, result) for name, benign, result in results if result is not None]
    faults = [result for _, benign, result in ran if not benign]
    return PeerReport(
        name=peer.name,
        version=peer.version,
        missing=None if peer.version else "not installed: pip install 'shadowlab[bench]'",
        right=sum(result.right is True for result in faults),
        stated=sum(result.right is not None for result in faults),
        in_module=sum(result.in_module is True for result in faults),
        stated_modules=sum(result.in_module is not None for result in faults),
        named=sum(result.named is not None for result in faults),
        false_alarms=tuple(name for name, benign, result in ran if benign and result.named is not None),
        num_benign=sum(benign for _, benign, _ in ran),
        errors=sum(result.error is not None for _, _, result in ran),
    )


def _names_origin(named: Naming | None, expected: Expected, origin: str | None, known: Verdict | None) -> bool | None:
    at_line = expected.at_origin and origin is not None
    has_op = isinstance(expected.op, str)
    has_module = isinstance(expected.module, str) and (expected.module != "" or has_op)
    has_tensor = isinstance(expected.parameter, str) and not at_line
    if not (at_line or has_op or has_module or has_tensor):
        return None
    if named is None:
        return False
    if at_line and origin is not None and place_of(origin) in map(place_of, named.sources):
        return True
    if has_tensor and expected.parameter in named.tensors:
        return True
    for op, module in named.operators:
        same_op = not has_op or normalised(op) == normalised(expected.op)
        same_module = not isinstance(expected.module, str) or module == expected.module
        if (has_op or has_module) and same_op and same_module:
            return True
    if has_module and not has_op and not at_line and expected.module in named.modules:
        return True
    if at_line or has_op or known is None or known.op is None or known.source is None:
        return False
    same_op = any(normalised(op) == normalised(known.op) for op, _ in named.operators)
    return same_op and place_of(known.source) in map(place_of, named.sources)


def _names_module(named: Naming | None, expected: Expected) -> bool | None:
    if not isinstance(expected.module, str):
        return None
    return named is not None and expected.module in {*named.modules, *(module for _, module in named.operators)}


def normalised(op: str) -> str:
    """One name for the operator that tools call `__truediv__`, `aten::div.Tensor`, `DivBackward0` or `div_`."""
    parts = re.split(r"::|\.", op)  # [namespace], name, [overload]
    op = parts[1] if "::" in op or len(parts) > 2 else parts[0]
    op = re.sub(r"Backward\d*$", "", op)
    op = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op).lower().removeprefix("_foreach").strip("_")
    return _FAMILY.get(op, op)


def place_of(source: str) -> tuple[Path, str]:
    """Absolute path and line of `path:line`."""
    path, _, line = source.rpartition(":")
    return Path(path).resolve(), line


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Anomaly mode, randomness, warnings' filters and standard output are afterwards what they were."""
    anomaly, checks = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            torch.autograd.set_detect_anomaly(anomaly, checks)
