"""Other tools that name where a non-finite value comes from, each run in its best mode."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diagnostics import models_in, optimizers_in
from shadowlab.bench.corpus import Scene
from shadowlab.bench.peer_score import Naming, Peer

_TRACE_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def _traced(text: str) -> tuple[str, ...]:
    return tuple(f"{path}:{line}" for path, line in _TRACE_LINE.findall(text))


def _raised_at(error: BaseException) -> tuple[str, ...]:
    """Lines of the traceback that a user sees."""
    return tuple(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__))


# torch.autograd.detect_anomaly


def detect_anomaly(scene: Scene) -> Naming | None:
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


def underflow_overflow(scene: Scene) -> Naming | None:
    """The last frame that it prints: the module, and which of its weights, inputs and outputs are bad."""
    tool = importlib.import_module("transformers.debug_utils").DebugUnderflowOverflow
    inputs: dict[str, list[str | None]] = {}
    printed = io.StringIO()
    for model in models_in(scene.model):
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


def _note_inputs(scene: Scene, model: nn.Module, inputs: dict[str, list[str | None]]) -> None:
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


def sherlorch(scene: Scene) -> Naming | None:
    """With source lines and all modules watched; asked for the loss, then for whatever else the step left bad."""
    with importlib.import_module("sherlorch").trace(capture_stack=True) as tracker:
        for model in models_in(scene.model):
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


def _sinks(scene: Scene, result: Any) -> Iterator[Tensor]:
    models = models_in(scene.model)
    yield from (x for x in tree_leaves(result) if isinstance(x, Tensor))
    yield from (p.grad for model in models for p in model.parameters() if p.grad is not None)
    yield from (p for model in models for p in model.parameters())
    yield from (b for model in models for b in model.buffers())
    for optimizer in optimizers_in(scene.optimizer):
        states = getattr(optimizer, "state", {})
        yield from (x for state in states.values() for x in tree_leaves(dict(state)) if isinstance(x, Tensor))


# torch's DebugMode


def debug_mode(scene: Scene) -> Naming | None:
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


def neuraldbg(scene: Scene) -> Naming | None:
    """The first event of a NaN or Inf that it records; its other events are no statements about those."""
    tool = importlib.import_module("neuraldbg").NeuralDbg
    inputs: dict[str, list[str | None]] = {}
    watches = []
    with contextlib.ExitStack() as stack:
        for model in models_in(scene.model):
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


def torch_audit(scene: Scene) -> Naming | None:
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


def _pairs(scene: Scene) -> Iterator[tuple[nn.Module, Any]]:
    """Models with the optimizer that holds their parameters, where it is one of torch's."""
    for model in models_in(scene.model):
        own = {id(parameter) for parameter in model.parameters()}
        yield model, next((o for o in optimizers_in(scene.optimizer) if own & set(map(id, _held(o)))), None)


def _held(optimizer: Any) -> list[Tensor]:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return []
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# StabilityGuard


def stabilityguard(scene: Scene) -> Naming | None:
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
            modules = {name for model in models_in(scene.model) for name, _ in model.named_modules()}
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
