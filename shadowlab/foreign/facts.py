"""What can be said of a step that tripped without running it again: its inputs, outputs, losses and gradients, looked
at when it is too late to ask where they came from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Verdict, all_finite, replaced

_MOST_CALLS = 256  # of a model within one step; a rollout may make thousands
_NAMED = 3


class Facts:
    """Of the step that is running. Notes references alone, and reads nothing before it is asked."""

    losses: list[Tensor]
    """What was differentiated so far, without its graph, any shape."""

    def __init__(self, models: list[nn.Module]) -> None:
        self._models = models
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.losses = []
        self._inputs: list[tuple[str, Tensor]] = []
        self._outputs: list[tuple[str, Tensor]] = []

    @contextmanager
    def noting(self, before_call: Callable[[], None]) -> Iterator[None]:
        """The script runs inside. Calls of the models are seen in their classes: a hook would be saved with a model.

        Args:
            before_call: called before each.
        """

        def noted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if not any(model is one for one in self._models):
                    return original(model, *args, **kwargs)
                before_call()
                output = original(model, *args, **kwargs)
                self._note_call(model, args, kwargs, output)
                return output

            return call

        with ExitStack() as stack:
            for kind in {type(model) for model in self._models}:
                stack.enter_context(replaced(kind, "__call__", noted))
            yield

    def note_loss(self, roots: Any) -> None:
        """Backward starts from these."""
        listed = [roots] if isinstance(roots, Tensor) else list(roots)
        self.losses += [root.detach() for root in listed if isinstance(root, Tensor)]

    def note_inputs(self, model: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
        """A model is called with these."""
        if not any(model is one for one in self._models):
            return
        entering = [(str(i), one) for i, one in enumerate(args)] + list((kwargs or {}).items())
        name = type(model).__name__
        self._inputs += [(f"{key} of {name}", tensor) for key, one in entering for tensor in _tensors(one)]

    def _note_call(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if len(self._outputs) >= _MOST_CALLS:
            return
        self.note_inputs(model, args, kwargs)
        self._outputs += [(type(model).__name__, tensor) for tensor in _tensors(output)]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What entered the models last, by name."""
        return dict(self._inputs)

    def verdict(self, *, fix: str) -> Verdict:
        """The phase and the bearer, as far as they show; gradients must still be there. Reads on the host."""
        named = [(name, p) for model in self._models for name, p in model.named_parameters()]
        gradients = [(name, p.grad) for name, p in named if p.grad is not None]
        bad = {
            "inputs": _bad(self._inputs),
            "weights": _bad(named),
            "outputs": _bad(self._outputs),
            "gradients": _bad(gradients),
        }
        is_bad_loss = not _is_finite(self.losses)
        words = [
            f"{', '.join(dict.fromkeys(names[:_NAMED]))}{' and others' if len(names) > _NAMED else ''}"
            for names in bad.values()
        ]
        inputs, weights, outputs, grads = words
        seen = "; ".join(
            [
                f"input {inputs}: not finite" if inputs else "all that entered the model is finite",
                f"weights not finite: {weights}" if weights else "weights finite",
                f"output of {outputs}: not finite" if outputs else "outputs finite",
                f"loss {self.loss_text()}",
                f"gradients not finite: {len(bad['gradients'])} of {len(gradients)} ({grads})"
                if grads
                else "gradients finite",
            ]
        )
        phase, cause, bearer = "optimizer", "unknown", None
        if bad["inputs"]:
            phase, cause, bearer = "data", "bad_data", bad["inputs"][0]
        elif bad["weights"]:
            phase, cause, bearer = "state", "bad_state", bad["weights"][0]
        elif bad["outputs"]:
            phase, bearer = "forward", f"output of {bad['outputs'][0]}"
        elif is_bad_loss:
            phase, bearer = "loss", "the loss"
        elif bad["gradients"]:
            phase, bearer = "backward", f"gradient of {bad['gradients'][-1]}"  # of the layer nearest to the loss
        came = [tensor for name, tensor in self._inputs if phase == "data" and not _is_finite([tensor])]
        samples = _bad_rows(came[0]) if came else ()  # of the first call of several
        return Verdict(phase, None, cause, parameter=bearer, samples=samples, witness={"seen": seen}, fix=fix)

    def loss_text(self) -> str:
        """The losses, in words."""
        return ", ".join(f"{value:.6g}" for value in self.loss_values()) or "not seen"

    def loss_values(self) -> list[float]:
        """One number of each. Reads on the host."""
        return [float(loss.double().sum()) for loss in self.losses]


def _tensors(value: Any) -> list[Tensor]:
    """Floating tensors in nested containers, without their graph."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() or value.is_complex() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _bad(named: Sequence[tuple[str, Tensor]]) -> list[str]:
    return [name for name, tensor in named if not _is_finite([tensor])]


def _is_finite(tensors: list[Tensor]) -> bool:
    return not tensors or all(bool(all_finite([tensor])) for tensor in tensors)


def _bad_rows(tensor: Tensor) -> tuple[int, ...]:
    if tensor.dim() < 2:
        return ()
    return tuple(torch.nonzero(~torch.isfinite(tensor).flatten(1).all(dim=1)).flatten().tolist())
