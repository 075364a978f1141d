"""What a training run does, heard by torch's own hooks and through the task that it is given; nothing is changed.

The run is the one that trains: no line of it knows that somebody listens.

Legend: B samples of a micro-batch, h w latents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks_with_kwargs, register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from shadowlab.distributed import whole
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.models import Objective
from shadowlab.training import moments_of

Tensors = dict[str, Tensor]


@dataclass(eq=False)
class Forward:
    """One call of the model, with what the objective was asked around it; None: it was not asked."""

    noise: Tensor | None = None
    data: Tensor | None = None
    t: Tensor | None = None
    x_t: Tensor | None = None
    times: Tensor | None = None
    """t as the timesteps were asked of it."""
    sample: Tensor | None = None
    """What the model was given, (B, C, h, w)."""
    timesteps: Tensor | None = None
    tokens: Tensor | None = None
    embedding: Tensor | None = None
    prediction: Tensor | None = None
    """What the loss was given, (B, 4, h, w)."""
    loss_given: tuple[Tensor, Tensor, Tensor] | None = None
    """Noise, data and t that the loss was given."""
    losses: Tensor | None = None
    gradient: Tensor | None = None
    """Of the prediction, as backward left it."""
    trains: bool = False
    """Gradients were recorded."""
    training_mode: bool = False
    dtypes: dict[str, str] = field(default_factory=dict)
    """Of the weights, and of what some layers gave."""
    tf32: bool = False
    """Whether matrix products or convolutions might have used it."""


@dataclass(eq=False)
class Encoding:
    """One batch that was encoded or put together from latents."""

    encoded: EncodedBatch
    batch: Any = None
    """What `encode` was given; None of latents."""


@dataclass(eq=False)
class OptimizerStep:
    """Around one step of an optimizer; names are the model's, or `?` and a number for tensors that are not its."""

    before: Tensors
    gradients: Tensors
    groups: list[dict[str, Any]]
    """Its options without the parameters."""
    owned: list[list[str]]
    """Names of the parameters of each group."""
    num_forwards: int
    """Calls of the model that train until then."""
    after: Tensors = field(default_factory=dict)
    moments: dict[str, Tensors] = field(default_factory=dict)


@dataclass(eq=False)
class Collation:
    samples: list[Any]
    batch: Any


class Listener:
    """Hears one run of a task."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self.forwards: list[Forward] = []
        self.encodings: list[tuple[int, Encoding]] = []
        """With the number of calls of the model before it."""
        self.collations: list[Collation] = []
        self.steps: list[OptimizerStep] = []
        self.first: Tensors = {}
        """All parameters at the first call of the model that trains."""
        self.judged: Tensors = {}
        """All parameters at the first call after the last step."""
        self.vae_dtypes: set[str] = set()
        self.model: nn.Module | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        task, handles = self._task, []
        heard: dict[str, Callable[..., None]] = {
            "collate": self._collate,
            "encode": self._encode,
            "assemble": self._assemble,
        }
        own = {name: value for name, value in vars(task).items() if name in heard}
        objective = task.objective
        for name, ear in heard.items():
            setattr(task, name, _through(getattr(task, name), ear))
        task.objective = _HeardObjective(objective, self)
        try:
            handles += [
                register_module_forward_hook(self._module, with_kwargs=True),
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]
            yield
        finally:
            for handle in handles:
                handle.remove()
                _global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch's own `remove` leaves it
            for name in heard:
                delattr(task, name)
            vars(task).update(own)
            task.objective = objective

    # The task

    def _collate(self, result: Any, samples: Any) -> None:
        self.collations.append(Collation(list(samples), result))

    def _assemble(self, result: Any, *_: Any) -> None:
        self.encodings.append((len(self.forwards), Encoding(result)))

    def _encode(self, result: Any, batch: Any, *_: Any) -> None:
        """It has assembled just before; what comes out of it counts."""
        if self.encodings and self.encodings[-1][1].batch is None:
            self.encodings.pop()
        self.encodings.append((len(self.forwards), Encoding(result, batch)))

    # The objective

    def current(self, *, asks: str) -> Forward:
        """The call that is being prepared, or a new one where the last has this already."""
        last = self.forwards[-1] if self.forwards else None
        if last is None or getattr(last, asks) is not None or (asks == "times" and last.sample is not None):
            last = Forward()
            self.forwards.append(last)
        return last

    # The model and the autoencoder

    def _module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, UNet2DConditionModel):
            if self.model is not None and module is not self.model:
                self._forget_another()
            self.model = module
            self._called(module, args, kwargs, output)
        elif self.model is not None:
            parts: tuple[str, ...] = ("conv_in", "conv_norm_out", "conv_out", "time_embedding")
            for name in parts:
                if module is getattr(self.model, name, None) and isinstance(output, Tensor):
                    self._dtypes[name] = _name(output.dtype)
        vae = getattr(getattr(self._task, "vae", None), "autoencoder", None)
        if vae is not None and module in (vae.encoder, vae.decoder):
            self.vae_dtypes |= {_name(args[0].dtype), _name(output.dtype), _name(next(module.parameters()).dtype)}

    _dtypes: dict[str, str] = {}  # noqa: RUF012

    def _forget_another(self) -> None:
        """What was heard is of a model that came before the run's: the stand-in that proves its checkpoints."""
        prepared = [one for one in self.forwards[-1:] if one.sample is None]  # for the call that is heard now
        dropped = len(self.forwards) - len(prepared)
        self.forwards, self.steps, self.first, self.judged, self._dtypes = prepared, [], {}, {}, {}
        self.encodings = [(max(calls - dropped, 0), one) for calls, one in self.encodings]

    def _called(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        names = ("sample", "timestep", "encoder_hidden_states")
        given = dict(zip(names, args, strict=False)) | kwargs
        one = self.current(asks="sample")
        one.sample, one.timesteps = _copy(given.get("sample")), _copy(given.get("timestep"))
        one.tokens, one.embedding = _copy(given.get("encoder_hidden_states")), _copy(given.get("class_labels"))
        one.trains, one.training_mode = torch.is_grad_enabled(), unet.training
        one.dtypes = {"weights": _name(next(unet.parameters()).dtype), **self._dtypes}
        one.tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        self._dtypes = {}
        if one.trains and not self.first:
            self.first = _all_of(unet)
        if not one.trains and self.steps and not self.judged and self.steps[-1].after:
            self.judged = _all_of(unet)

    @property
    def training(self) -> list[Forward]:
        """The calls that train."""
        return [one for one in self.forwards if one.trains]

    @property
    def training_encodings(self) -> list[Encoding]:
        """Those after the first validation."""
        return [one for calls, one in self.encodings if calls > 0]

    # The optimizer

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.model is None:
            return
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups = optimizer.param_groups
        owned = [[names.get(id(p), f"? {i}") for i, p in enumerate(group["params"])] for group in groups]
        tensors = {
            name: p
            for group, own in zip(groups, owned, strict=True)
            for name, p in zip(own, group["params"], strict=True)
        }
        self._step_parameters = tensors
        self.steps.append(
            OptimizerStep(
                before={name: _whole(p, p) for name, p in tensors.items()},
                gradients={name: _whole(p.grad, p) for name, p in tensors.items() if p.grad is not None},
                groups=[{key: value for key, value in group.items() if key != "params"} for group in groups],
                owned=owned,
                num_forwards=len(self.training),
            )
        )

    _step_parameters: dict[str, Any] = {}  # noqa: RUF012

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.steps or self.steps[-1].after:
            return
        step, tensors = self.steps[-1], self._step_parameters
        step.after = {name: _whole(p, p) for name, p in tensors.items()}
        for name, parameter in tensors.items():
            for kind, moment in moments_of(optimizer.state.get(parameter, {})).items():
                step.moments.setdefault(kind, {})[name] = _whole(moment, parameter)


class _HeardObjective:
    """The objective, and an ear at it."""

    def __init__(self, objective: Objective, listener: Listener) -> None:
        self._objective, self._listener = objective, listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        x_t = self._objective.noised(noise, data, t)
        one = self._listener.current(asks="noise")
        if one.sample is not None:
            one = Forward()
            self._listener.forwards.append(one)
        one.noise, one.data, one.t, one.x_t = _copy(noise), _copy(data), _copy(t), _copy(x_t)
        return x_t

    def timesteps(self, t: Tensor) -> Tensor:
        self._listener.current(asks="times").times = _copy(t)
        return self._objective.timesteps(t)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        losses = self._objective.loss(prediction, noise, data, t)
        one = self._listener.forwards[-1] if self._listener.forwards else Forward()
        one.prediction, one.losses = _copy(prediction), _copy(losses)
        one.loss_given = (noise.detach().clone(), data.detach().clone(), t.detach().clone())
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: setattr(one, "gradient", _copy(gradient)))
        return losses


def _through(function: Callable[..., Any], ear: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        ear(result, *args, *kwargs.values())
        return result

    return call


def _copy(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) else None


def _whole(tensor: Any, like: Any) -> Tensor:
    return whole(tensor.detach(), like=like).clone()


def _all_of(model: nn.Module) -> Tensors:
    return {name: _whole(p, p) for name, p in model.named_parameters()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
