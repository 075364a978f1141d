"""Activation and gradient statistics of every leaf module, in the order of execution."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.statistics import TensorStatistics, merge, moments


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor inside nested tuples, lists, mappings and model outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from tensors_in(item)


def leaf_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted name to module, for modules without children. A model that is itself a leaf is named `model`."""
    return {name or "model": module for name, module in model.named_modules() if not any(module.children())}


class LayerStatistics:
    """Hooks that measure each leaf module's output and the gradient of the loss by that output.

    Between `with statistics.recording():` and `collect()` nothing is read on the host: each call leaves one small
    tensor on its device, and `collect` fetches all of them at once. Outside `recording` the hooks return at once.
    Nothing is changed: outputs and gradients pass through as they are.

    Gradients are taken by hooks on the output tensors, not by full backward hooks, which break in-place operators
    (pytorch#61519). Under activation checkpointing the repeated forward is not counted twice.

        statistics = LayerStatistics(model)
        with statistics.recording():
            loss = model(batch).mean()
            loss.backward()
        for name, layer in statistics.collect().items(): ...
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = leaf_modules(model)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._recording = False
        self._activations: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        self.attach()

    def attach(self) -> None:
        """Put the hooks on; without effect where they are."""
        if self._handles:
            return
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._forward_hook(name)))

    def detach(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def recording(self, enabled: bool = True) -> Iterator[None]:
        """Measure what runs inside; with `enabled=False` nothing is measured."""
        self._activations, self._gradients = {}, {}
        self._recording = enabled
        try:
            yield
        finally:
            self._recording = False

    def collect(self) -> dict[str, dict[str, TensorStatistics]]:
        """Name -> {"activation": ..., "gradient": ...} in the order of execution. One transfer to the host.

        A layer whose output received no gradient has no "gradient" entry; one that did not run is absent.
        """
        keys: list[tuple[str, str]] = []
        vectors: list[Tensor] = []
        for name, parts in self._activations.items():
            keys.append((name, "activation"))
            vectors.append(merge(parts))
            if name in self._gradients:
                keys.append((name, "gradient"))
                vectors.append(merge(self._gradients[name]))
        self._activations, self._gradients = {}, {}
        if not vectors:
            return {}
        result: dict[str, dict[str, TensorStatistics]] = {}
        for (name, kind), values in zip(keys, torch.stack(vectors).tolist(), strict=True):
            result.setdefault(name, {})[kind] = TensorStatistics.from_moments(values)
        return result

    def _forward_hook(self, name: str) -> Any:
        def record_gradient(gradient: Tensor) -> None:
            if self._recording:
                self._gradients.setdefault(name, []).append(moments(gradient))

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self._recording:
                return
            recomputing = torch._C._current_graph_task_id() != -1  # activation checkpointing, inside backward
            for tensor in tensors_in(output):
                if not recomputing:
                    self._activations.setdefault(name, []).append(moments(tensor))
                if tensor.requires_grad:
                    tensor.register_hook(record_gradient)

        return hook
