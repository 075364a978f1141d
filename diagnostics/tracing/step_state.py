"""What a step's models and optimizers hold, by name: parameters, buffers, attributes, optimizer states."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics.modules import unwrapped
from diagnostics.tensors import named_tensors, strided, tensors_in
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

    def attributes(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) pairs of tensors that are plain attributes of modules, or lie in containers that are."""
        for model in self._models:
            for path, module in model.named_modules():
                for key, value in vars(module).items():
                    if not key.startswith("_") or isinstance(value, Tensor):  # torch's own dictionaries begin with _
                        for tensor in tensors_in(value):
                            yield f"{path}.{key}".lstrip("."), tensor

    def optimizer_states(self) -> Iterator[tuple[str, Tensor]]:
        """(`<parameter>.<state>`, tensor) pairs, as they are now; see `named_tensors` for what lies deeper."""
        states = [item for one in self._optimizers for item in getattr(one, "state", {}).items()]
        for i, (parameter, state) in enumerate(states):
            yield from named_tensors(str(self._names.get(id(parameter), i)), state)


def _bare(pairs: Iterable[tuple[str, Held]]) -> Iterator[tuple[str, Held]]:
    """Names without what torch.compile puts into them."""
    for name, value in pairs:
        yield name.replace("_orig_mod.", ""), value
