"""What watches a loop of the corpus: `diagnostics.Watch`, tools of others in their best mode, or nothing."""

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diagnostics import Watch, models_in, optimizers_in


@dataclass(frozen=True)
class Said:
    """One thing that a tool objects to."""

    rule: str
    where: str
    """Parameter, layer, input or call; "" where it names none."""
    step: int | None
    """Watched step (0-based); None for before the first."""
    severity: str
    """alarm, or warning."""
    text: str


class OfWatch:
    """`Watch` with its defaults, and its two integrations."""

    def __init__(self) -> None:
        self._watches: list[Callable[[], Watch | None]] = []

    def __call__(self, model: Any, optimizer: Any = None, **options: Any) -> Watch:
        watch = Watch(model, optimizer, incidents=None, **options)
        self._watches.append(lambda: watch)
        return watch

    def lightning(self) -> list[Any]:
        from diagnostics.integrations.lightning import WatchCallback

        callback = WatchCallback(incidents=None)
        self._watches.append(lambda: callback.watch)
        return [callback]

    def trainer(self) -> Any:
        from transformers import Trainer

        from diagnostics.integrations.transformers import WatchMixin

        watches = self._watches

        class Watched(WatchMixin, Trainer):
            watch_options = {"incidents": None}  # noqa: RUF012 (as a user writes it)

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                watches.append(lambda: self.watch)

        return Watched

    def said(self) -> list[Said]:
        """Each finding of every watch."""
        findings = [finding for one in self._watches if (watch := one()) is not None for finding in watch.findings]
        return [
            Said(one.rule, getattr(one, "where", one.place) or "", one.step, one.severity, one.evidence)
            for one in findings
        ]

    def close(self) -> None:
        """Take the watches off."""
        for one in self._watches:
            watch = one()
            if watch is not None:
                watch.detach()


class Steps:
    """Stands where a watch would: counts steps, and tells a tool where one ends."""

    def __init__(self, ended: Callable[[int, Any], None]) -> None:
        self._ended = ended
        self._number = 0

    def attempts(self, *, batch: Any = None, step_index: int | None = None) -> Iterator[Any]:
        frame = sys._getframe(1)
        with contextlib.ExitStack() as stack:
            yield stack
        self._end(frame.f_locals.get("loss"))

    def step(self, step: Callable[[], Any], *, batch: Any = None, step_index: int | None = None) -> Any:
        result = step()
        self._end(result)
        return result

    def _end(self, loss: Any) -> None:
        self._ended(self._number, loss)
        self._number += 1


class Nothing:
    """The loop as it is; keeps its models, to look at what became of them."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.losses: list[float] = []

    def __call__(self, model: Any, optimizer: Any = None, **options: Any) -> Any:
        self.models += models_in(model)
        return Steps(self._ended)

    def _ended(self, step: int, loss: Any) -> None:
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.losses.append(float(loss.detach()))

    def lightning(self) -> list[Any]:
        from lightning.pytorch import Callback

        tool = self

        class Look(Callback):
            def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
                tool.models.append(pl_module)

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
                tool._ended(index, (outputs or {}).get("loss"))

        return [Look()]

    def trainer(self) -> Any:
        from transformers import Trainer

        tool = self

        class Looked(Trainer):
            def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
                if model not in tool.models:
                    tool.models.append(model)
                loss = super().training_step(model, *args, **kwargs)
                tool._ended(0, loss)
                return loss

        return Looked

    def said(self) -> list[Said]:
        return []

    def close(self) -> None: ...


class _OfAnother:
    """A tool that takes a model and its optimizer, in every host."""

    def __call__(self, model: Any, optimizer: Any = None, **options: Any) -> Any:
        for one in models_in(model):
            self._begin(one, _holder(one, optimizer))
        return Steps(self._ended)

    def lightning(self) -> list[Any]:
        from lightning.pytorch import Callback

        tool = self

        class Look(Callback):
            def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
                tool._begin(pl_module, _holder(pl_module, trainer.optimizers))

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
                tool._ended(trainer.fit_loop.epoch_loop.total_batch_idx, (outputs or {}).get("loss"))

        return [Look()]

    def trainer(self) -> Any:
        from transformers import Trainer

        tool = self

        class Looked(Trainer):
            def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
                first = not hasattr(self, "looked")
                if first:
                    tool._begin(model, getattr(self.optimizer, "optimizer", self.optimizer))
                    self.looked = 0
                loss = super().training_step(model, *args, **kwargs)
                tool._ended(self.looked, loss)
                self.looked += 1
                return loss

        return Looked

    def _begin(self, model: nn.Module, optimizer: Any) -> None:
        raise NotImplementedError

    def _ended(self, step: int, loss: Any) -> None:
        raise NotImplementedError


class OfTorchAudit(_OfAnother):
    """torch-audit at every step, with its rules of data, gradients, activations and graph; those of style and
    hardware (TA2xx, TA4xx) speak of every loop, and are left out."""

    package = "torch-audit"

    def __init__(self) -> None:
        self._auditors: list[Any] = []
        self._said: list[Said] = []

    def _begin(self, model: nn.Module, optimizer: Any) -> None:
        tool = importlib.import_module("torch_audit")
        self._auditors.append(tool.autopatch(model, optimizer=optimizer, every_n_steps=1, reporters=[], run_init=False))

    def _ended(self, step: int, loss: Any) -> None:
        for auditor in self._auditors:
            for one in auditor.pop_new_findings():
                severity = {"ERROR": "alarm", "FATAL": "alarm", "WARN": "warning"}.get(one.severity.value)
                if severity is not None and one.rule_id[2] not in "024":
                    where = one.entity or one.module_path or ""
                    self._said.append(Said(one.rule_id, where, step, severity, one.message))

    def said(self) -> list[Said]:
        return self._said

    def close(self) -> None:
        for auditor in self._auditors:
            auditor.unpatch()


class OfNeuralDbg(_OfAnother):
    """neuraldbg, told every loss: each event of a change into a state that is not healthy. It knows no severities."""

    package = "neuraldbg"

    def __init__(self) -> None:
        self._debuggers: list[tuple[Any, dict[str, str]]] = []
        self._seen = 0
        self._said: list[Said] = []
        self._stack = contextlib.ExitStack()

    def _begin(self, model: nn.Module, optimizer: Any) -> None:
        tool = importlib.import_module("neuraldbg").NeuralDbg
        names = {f"{type(m).__name__}_{n}" if n else "root": n for n, m in model.named_modules()}
        self._debuggers.append((self._stack.enter_context(tool(model)), names))

    def _ended(self, step: int, loss: Any) -> None:
        for debugger, names in self._debuggers:
            if isinstance(loss, Tensor) and loss.numel() == 1:
                debugger.record_loss(float(loss.detach()))
            debugger.step_iteration()
            events = debugger.get_events()
            for event in events[self._seen :] if len(self._debuggers) == 1 else events:
                where = names.get(event.layer_name, event.layer_name)
                said = Said(event.event_type.value, where, step, "alarm", f"{event.from_state} -> {event.to_state}")
                known = {(one.rule, one.where, one.text) for one in self._said}
                if str(event.to_state) not in ("healthy", "normal") and (said.rule, where, said.text) not in known:
                    self._said.append(said)
            self._seen = len(events)

    def said(self) -> list[Said]:
        return self._said

    def close(self) -> None:
        self._stack.close()


def _holder(model: nn.Module, optimizer: Any) -> Any:
    """The optimizer that holds parameters of the model; None where there is none."""
    own = {id(parameter) for parameter in model.parameters()}
    for one in optimizers_in(optimizer):
        if any(id(parameter) in own for group in one.param_groups for parameter in group["params"]):
            return one
    return None


@dataclass(frozen=True)
class Tool:
    """One that is scored."""

    name: str
    make: Callable[[], Any]
    package: str | None = None
    """What must be installed for it."""

    @property
    def version(self) -> str | None:
        """ "" for our own; None where the package is not installed."""
        if self.package is None:
            return ""
        try:
            return importlib.metadata.version(self.package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None


WATCH = Tool("Watch", OfWatch)
PEERS = (
    Tool("torch-audit", OfTorchAudit, "torch-audit"),
    Tool("neuraldbg", OfNeuralDbg, "neuraldbg"),
)
TOOLS = {tool.name: tool for tool in (WATCH, *PEERS, Tool("nothing", Nothing))}
