"""What a step's models and optimizers hold, by name: parameters, buffers, attributes, optimizer states."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics.modules import unwrapped, withheld_gradients
from diagnostics.tensors import named_tensors, strided, tensors_in
from diagnostics.tracing.birth import Keeping
from diagnostics.tracing.provenance import storage_key
from diagnostics.tracing.step_context import prefixes

Held = TypeVar("Held")


class StepState:
    """Names are those of the bare models; where two are the same, the later one has its model's class before it.

    Attributes:
        parameters: by name, of the models and of optimizers that train others. Grows when a model is adopted.
        storage_names: names of parameters, buffers and gradients, by the key of their storage.
        gradients: keys of the storages of parameters' gradients.
    """

    def __init__(self, models: list[nn.Module], optimizers: list[Any]) -> None:
        self._models = [unwrapped(model) for model in models]
        self._optimizers = optimizers
        self.parameters: dict[str, nn.Parameter] = {}
        for model, prefix in zip(self._models, prefixes(models), strict=True):
            for name, parameter in _bare(model.named_parameters()):
                if not is_lazy(parameter):
                    self.parameters[prefix + name if name in self.parameters else name] = parameter
        self.parameters |= self._parameters_of_optimizers_alone()
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.storage_names: dict[int, str] = {}
        self.gradients: set[int] = set()
        for name, tensor in [*self.buffers(), *self.parameters.items()]:
            self._name_storage(name, tensor)

    def _parameters_of_optimizers_alone(self) -> dict[str, nn.Parameter]:
        """What optimizers train and no listed model holds. Another model gives better names when it is called."""
        known = {id(parameter) for parameter in self.parameters.values()}
        found: dict[str, nn.Parameter] = {}
        for optimizer in self._optimizers:
            for g, group in enumerate(getattr(optimizer, "param_groups", [])):
                for i, parameter in enumerate(group["params"]):
                    if id(parameter) not in known:
                        found[f"param_groups[{g}][{i}]"] = parameter
        return found

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Of all parameters."""
        return {tuple(parameter.shape) for parameter in self.parameters.values()}

    def name_of(self, parameter: Tensor) -> str:
        """Of a parameter (any shape) in `parameters`."""
        return self._names[id(parameter)]

    def is_trained(self, name: str | None) -> bool:
        """Whether an optimizer holds the parameter of this name and trains it."""
        parameter = None if name is None else self.parameters.get(name)
        groups = (group for one in self._optimizers for group in getattr(one, "param_groups", []))
        held = any(parameter is one for group in groups for one in group["params"])
        return held and parameter is not None and parameter.requires_grad

    def adopt(self, model: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
        """Add the parameters of a model that the caller did not list, as `<prefix>.<name>`.

        Returns:
            (name, parameter) pairs of those that were in no optimizer either.
        """
        new = []
        for own, parameter in _bare(model.named_parameters()):
            name = f"{prefix}.{own}".lstrip(".")
            known = self._names.get(id(parameter))
            if known == name:
                continue
            self.parameters.pop(known or name, None)
            self.parameters[name] = parameter
            self._names[id(parameter)] = name
            self._name_storage(name, parameter)
            if known is None:
                new.append((name, parameter))
        return new

    def note_gradient(self, name: str | None, gradient: Tensor) -> Tensor | None:
        """Remember a parameter's gradient, in its shape; returns its strided values, None where it has none here.

        name: of the parameter, which names the gradient's storage, too; None leaves it without a name.
        """
        values = strided(gradient)
        if values is not None:
            self.gradients.add(storage_key(values))
            if name is not None:
                self.storage_names[storage_key(values)] = name
        return values

    def _name_storage(self, name: str, tensor: Tensor) -> None:
        values = strided(tensor)
        if values is not None:
            self.storage_names[storage_key(values)] = name

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(name, buffer) pairs, as they are now."""
        taken = set(self.parameters)
        for model, prefix in zip(self._models, prefixes(self._models), strict=True):
            for name, buffer in _bare(model.named_buffers()):
                unique = prefix + name if name in taken else name
                taken.add(unique)
                yield unique, buffer

    def withheld_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter's name, gradient) pairs of those that FSDP2 keeps to itself now."""
        for withheld in withheld_gradients(self._models):
            gradient = withheld.grad
            if gradient is not None:
                yield withheld.name, gradient

    def keeping(self, name: str) -> Keeping:
        """How the models keep a parameter, buffer or attribute."""
        if name in self.parameters:
            parameter = self.parameters[name]
            rate, eps = self._number("lr", parameter), self._number("eps", parameter)
            return Keeping(is_trained=parameter.requires_grad, is_saved=True, rate=rate, eps=eps)
        for model, prefix in zip(self._models, prefixes(self._models), strict=True):
            modules = dict(_bare(model.named_modules()))
            for full in (name, name.removeprefix(prefix)):
                path, _, own = full.rpartition(".")
                owner = modules.get(path)
                if owner is not None and own in owner._buffers:
                    is_saved = own not in owner._non_persistent_buffers_set
                    return Keeping(is_saved=is_saved, is_running=own.startswith("running_"))
        return Keeping()

    def _number(self, option: str, parameter: Tensor) -> float | None:
        """An option with which an optimizer steps a parameter (any shape), where it is a number."""
        groups = (group for one in self._optimizers for group in getattr(one, "param_groups", []))
        group: dict[str, Any] = next((one for one in groups if any(p is parameter for p in one["params"])), {})
        value = group.get(option)
        return float(value) if isinstance(value, (int, float)) else None

    def attributes(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) pairs of tensors that are plain attributes of modules, or lie in containers that are."""
        for model in self._models:
            for path, module in model.named_modules():
                for key, value in vars(module).items():
                    if not key.startswith("_") or isinstance(value, Tensor):  # torch's own dictionaries begin with _
                        for tensor in tensors_in(value):
                            yield f"{path}.{key}".lstrip("."), tensor

    def optimizer_states(self) -> Iterator[tuple[str, Tensor]]:
        """(`<parameter>.<state>`, tensor) pairs, as they are now, and numbers of groups that are held as tensors
        (`param_groups[0].lr`); see `named_tensors` for what lies deeper."""
        states = [item for one in self._optimizers for item in getattr(one, "state", {}).items()]
        for i, (parameter, state) in enumerate(states):
            yield from named_tensors(str(self._names.get(id(parameter), i)), state)
        for optimizer in self._optimizers:
            for g, group in enumerate(getattr(optimizer, "param_groups", [])):
                for key, value in group.items():
                    if key != "params":
                        yield from named_tensors(f"param_groups[{g}].{key}", value)


def _bare(pairs: Iterable[tuple[str, Held]]) -> Iterator[tuple[str, Held]]:
    """Names without what torch.compile puts into them."""
    for name, value in pairs:
        yield name.replace("_orig_mod.", ""), value
