"""Other tools that name where a non-finite value comes from, each run in its best mode and scored generously.

A peer is right on a fault if anything that it names is the origin: the source line, the operator in the right module,
or, where the case's origin is a tensor, that tensor's name. Where a case states neither line nor operator, those of
`explain`'s verdict count as well, if that is right. A peer raises a false alarm if it names anything in a benign case.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diagnostics import Verdict

if TYPE_CHECKING:
    from shadowlab.bench.faults import Expected, Fault, Scene

_TRACE_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# Names by which tools call the same operator.
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
    """All that a tool names as origin. operators: (name, dotted module or None). tensors: parameters and inputs."""

    operators: tuple[tuple[str, str | None], ...] = ()
    sources: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    phase: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Peer:
    """A tool. name_origin: run the scene's step under it; None where it reports nothing."""

    name: str
    package: str
    name_origin: Callable[["Scene"], Naming | None]

    @property
    def version(self) -> str | None:
        """None where the package is not installed."""
        try:
            return importlib.metadata.version(self.package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None


@dataclass(frozen=True)
class PeerResult:
    """right: None where the case states no place. in_module: whether the right module is named, None where the case
    states none. error: what the tool itself failed with."""

    right: bool | None
    named: Naming | None
    error: str | None = None
    in_module: bool | None = None


@dataclass(frozen=True)
class PeerReport:
    """A row of the table. missing: why the tool did not run. named: faults of which it said anything."""

    name: str
    version: str | None
    missing: str | None
    right: int
    stated: int
    in_module: int
    stated_modules: int
    named: int
    false_alarms: tuple[str, ...]
    num_benign: int
    errors: int


def run_peer(peer: Peer, fault: "Fault", known: Verdict | None = None) -> PeerResult:
    """A fresh scene under one tool. known: a verdict whose place is right."""
    named, error = None, None
    try:
        with _restored():
            named = peer.name_origin(fault.build())
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


def _names_origin(named: Naming | None, expected: "Expected", origin: str | None, known: Verdict | None) -> bool | None:
    at_line = expected.at_origin and origin is not None
    has_op = isinstance(expected.op, str)
    has_module = isinstance(expected.module, str) and (expected.module != "" or has_op)
    has_tensor = isinstance(expected.parameter, str) and not at_line
    if not (at_line or has_op or has_module or has_tensor):
        return None
    if named is None:
        return False
    if at_line and origin is not None and _line(origin) in map(_line, named.sources):
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
    return same_op and _line(known.source) in map(_line, named.sources)


def _names_module(named: Naming | None, expected: "Expected") -> bool | None:
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


def _line(source: str) -> tuple[Path, str]:
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


def _models(scene: "Scene") -> list[nn.Module]:
    if scene.model is None:
        return []
    return list(scene.model) if isinstance(scene.model, list | tuple) else [scene.model]


def _optimizers(scene: "Scene") -> list[Any]:
    if scene.optimizer is None:
        return []
    return list(scene.optimizer) if isinstance(scene.optimizer, list | tuple) else [scene.optimizer]


def _traced(text: str) -> tuple[str, ...]:
    return tuple(f"{path}:{line}" for path, line in _TRACE_LINE.findall(text))


def _raised_at(error: BaseException) -> tuple[str, ...]:
    """Lines of the traceback that a user sees."""
    return tuple(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__))


# torch.autograd.detect_anomaly


def detect_anomaly(scene: "Scene") -> Naming | None:
    """The backward function in the exception, and the forward call whose traceback comes as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=True):
                scene.step()
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)' returned nan", str(error))
            if found is None:
                raise
            forward = "\n".join(str(warning.message) for warning in caught)
            sources = (*_traced(forward), *_raised_at(error))
            return Naming(((found[1], None),), sources, phase="backward", text=str(error))
    return None


# transformers.debug_utils.DebugUnderflowOverflow


def underflow_overflow(scene: "Scene") -> Naming | None:
    """The last frame that it prints: the module, and which of its weights, inputs and outputs are bad."""
    tool = importlib.import_module("transformers.debug_utils").DebugUnderflowOverflow
    inputs: dict[str, list[str | None]] = {}
    printed = io.StringIO()
    for model in _models(scene):
        _note_inputs(scene, model, inputs)
        tool(model)
    try:
        with contextlib.redirect_stdout(printed):
            scene.step()
    except ValueError as error:
        if "DebugUnderflowOverflow: inf/nan detected" not in str(error):
            raise
        return _last_frame(printed.getvalue(), inputs, _raised_at(error))
    return None


def _note_inputs(scene: "Scene", model: nn.Module, inputs: dict[str, list[str | None]]) -> None:
    """A bad `input[0]` counts as the batch's tensor by its name, where it is that tensor."""
    names = {tensor.data_ptr(): name for name, tensor in (scene.batch or {}).items() if isinstance(tensor, Tensor)}
    for path, module in model.named_modules():

        def note(_: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
            inputs[path] = [names.get(x.data_ptr()) if isinstance(x, Tensor) else None for x in args]

        module.register_forward_pre_hook(note)


def _last_frame(text: str, inputs: Mapping[str, Sequence[str | None]], sources: tuple[str, ...]) -> Naming:
    module, kind = "", ""
    bad: list[str] = []
    for line in text.splitlines():
        head = re.match(r"^ {18}(\S*) (\w+)$", line)
        if head:
            module, kind, bad = head[1], head[2], []
        elif re.match(r"^\s*\S+\s+(nan|inf)\s|^\s*(nan|inf)\s+\S+\s", line):
            bad.append(line.split()[-1])
    tensors: list[str] = []
    for name in bad:
        place = re.match(r"input\[(\d+)\]", name)
        known = inputs.get(module, [])
        if place and int(place[1]) < len(known):
            tensors.append(known[int(place[1])] or "")
        elif not name.startswith(("input", "output")):
            tensors.append(f"{module}.{name}".lstrip("."))
    operators = ((kind, module),) if any(name.startswith("output") for name in bad) else ()
    return Naming(operators, sources, (module,), tuple(filter(None, tensors)), "forward", f"{module} {kind}: {bad}")


# sherlorch


def sherlorch(scene: "Scene") -> Naming | None:
    """With source lines and all modules watched; asked for the loss, then for whatever else the step left bad."""
    with importlib.import_module("sherlorch").trace(capture_stack=True) as tracker:
        for model in _models(scene):
            tracker.watch(model, name="")
        result = scene.step()
    for tensor in _sinks(scene, result):
        if not tracker.has_issue(tensor):
            continue
        try:
            report = tracker.diagnose(tensor)
        except KeyError:  # it saw no operator write this one
            continue
        culprits = [node for node in report.culprits if node.op_name != "__get__"]  # `.grad` was read: names nothing
        if culprits:
            operators = tuple((node.op_name, _dotted(node.module_path)) for node in culprits)
            sources = tuple(node.location for node in culprits if node.location)
            return Naming(operators, sources, tuple(m for _, m in operators if m is not None), text=str(report))
    return None


def _dotted(path: str | None) -> str | None:
    return None if path is None else path.strip(".")


def _sinks(scene: "Scene", result: Any) -> Iterator[Tensor]:
    models = _models(scene)
    yield from (x for x in tree_leaves(result) if isinstance(x, Tensor))
    yield from (p.grad for model in models for p in model.parameters() if p.grad is not None)
    yield from (p for model in models for p in model.parameters())
    yield from (b for model in models for b in model.buffers())
    for optimizer in _optimizers(scene):
        states = getattr(optimizer, "state", {})
        yield from (x for state in states.values() for x in tree_leaves(dict(state)) if isinstance(x, Tensor))


# torch's DebugMode


def debug_mode(scene: "Scene") -> Naming | None:
    """The first logged operator whose output has a norm that is not finite: what a user reads off its log."""
    tool = importlib.import_module("torch.utils._debug_mode").DebugMode
    with tool(record_nn_module=True, record_stack_trace=True) as mode, tool.log_tensor_hashes(hash_fn="norm"):
        scene.step()
    modules: list[tuple[int, str]] = []
    for call in mode.logs:
        while modules and modules[-1][0] >= call.call_depth:
            modules.pop()
        if getattr(call, "header", None) == "nn.Mod":
            modules.append((call.call_depth, call.tag.partition(".")[2]))
        hashes = [x for x in tree_leaves((call.log or {}).get("hash")) if isinstance(x, float | Tensor)]
        if all(torch.isfinite(torch.as_tensor(x)).all() for x in hashes):
            continue
        module = modules[-1][1] if modules else None
        sources = _traced((call.stack_trace or "") + (call.fwd_stack_trace or ""))
        found = () if module is None else (module,)
        return Naming(((str(call.op), module),), sources, found, text=call.render([]))
    return None


# NeuralDBG


def neuraldbg(scene: "Scene") -> Naming | None:
    """The first event of a NaN or Inf that it records; its other events are no statements about those."""
    tool = importlib.import_module("neuraldbg").NeuralDbg
    inputs: dict[str, list[str | None]] = {}
    watches = []
    with contextlib.ExitStack() as stack:
        for model in _models(scene):
            _note_inputs(scene, model, inputs)
            watches.append((model, stack.enter_context(tool(model))))
        result = scene.step()
        for _, watch in watches:
            for loss in tree_leaves(result):
                if isinstance(loss, Tensor) and loss.numel() == 1:
                    watch.record_loss(float(loss))
    for model, watch in watches:
        names = {f"{type(m).__name__}_{n}" if n else "root": n for n, m in model.named_modules()}
        for event in watch.get_events():
            if str(event.to_state) in {"nan_detected", "inf_detected", "nan", "inf"}:
                module = names.get(event.layer_name, event.layer_name)
                tensors = tuple(filter(None, inputs.get(module, [])))
                return Naming((), (), (module,), tensors, text=f"{event.event_type.value} {event.to_state} at {module}")
    return None


# torch-audit


def torch_audit(scene: "Scene") -> Naming | None:
    """Weights before and after the step and gradients at `optimizer.step()`: the first finding of a NaN or Inf."""
    tool = importlib.import_module("torch_audit")
    auditors = []
    try:
        for model, optimizer in _pairs(scene):
            auditors.append(tool.autopatch(model, optimizer=optimizer, every_n_steps=1, reporters=[], run_init=False))
        scene.step()
    finally:
        for auditor in auditors:
            auditor.unpatch()
    for auditor in auditors:
        for finding in auditor.findings:
            if finding.rule_id == "TA100":
                found = re.search(r"(Parameter|Gradient for) '([^']+)'", finding.message)
                if found:
                    name = found[2] if found[1] == "Parameter" else f"{found[2]}.grad"
                    module = found[2].rpartition(".")[0]
                    return Naming((), (), (module,), (found[2], name), text=finding.message)
    return None


def _pairs(scene: "Scene") -> Iterator[tuple[nn.Module, Any]]:
    """Models with the optimizer that holds their parameters, where it is one of torch's."""
    for model in _models(scene):
        own = {id(parameter) for parameter in model.parameters()}
        yield model, next((o for o in _optimizers(scene) if own & set(map(id, _held(o)))), None)


def _held(optimizer: Any) -> list[Tensor]:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return []
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# StabilityGuard


def stabilityguard(scene: "Scene") -> Naming | None:
    """Its optimizer stands in for the step's own and raises: layers whose output's gradient is bad, in no order."""
    tool = importlib.import_module("stabilityguard")
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        for model, optimizer in _pairs(scene):
            if optimizer is not None:
                _guard(tool.GuardedOptimizer, optimizer, model, folder)
        try:
            scene.step()
        except Exception as error:
            if "stabilityguard" not in "".join(_raised_at(error)[-1:]):
                raise
            modules = {name for model in _models(scene) for name, _ in model.named_modules()}
            text = f"{printed.getvalue()}\n{error}"
            named = tuple(sorted(name for name in modules if name and _mentions(text, name)))
            return Naming((), (), named, phase="backward", text=str(error))
    return None


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text) is not None


def _guard(tool: Any, optimizer: Any, model: nn.Module, folder: str) -> None:
    plain = optimizer.step
    guarded = tool(optimizer, model, nan_action="raise", log_dir=folder, verbose=False)

    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer.step = plain
        try:
            return guarded.step(*args, **kwargs)
        finally:
            optimizer.step = step

    optimizer.step = step


PEERS: tuple[Peer, ...] = (
    Peer("torch detect_anomaly", "torch", detect_anomaly),
    Peer("torch DebugMode, first bad norm", "torch", debug_mode),
    Peer("transformers DebugUnderflowOverflow", "transformers", underflow_overflow),
    Peer("sherlorch", "sherlorch", sherlorch),
    Peer("neuraldbg", "neuraldbg", neuraldbg),
    Peer("torch-audit", "torch-audit", torch_audit),
    Peer("stabilityguard", "stabilityguard", stabilityguard),
)
