"""The state of any torch optimizer as a checkpoint holds it, and back.

optimizer.safetensors   the tensors: `PARAMETER/exp_avg`, ...
optimizer.json          all else; absent for AdamW's own states, whose names say all
    optimizer       class name
    groups          [{"parameters": [NAME, ..], "options": {OPTION: tree}}, ..]
    state           {PARAMETER: tree}
    other_state     {KEY: tree}: what an optimizer keeps under other keys than parameters
    without_state   parameters that no step has given a state

Trees: shadowlab/training/state_tree.py. What an optimizer keeps outside `state` and `param_groups` is not saved, as it
is not by torch's own `state_dict`.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadowlab.errors import UserError
from shadowlab.training.saved_file import damaged, read_object, read_tensors, shown
from shadowlab.training.state_tree import FIX, TreeReader, TreeWriter

TENSORS, DOCUMENT = "optimizer.safetensors", "optimizer.json"

# Options of a group that the configuration, the schedule or the machine decides, on resume as at the start.
_CONFIGURED = {
    *("params", "param_names", "lr", "initial_lr", "betas", "eps", "weight_decay"),
    *("fused", "foreach", "capturable", "differentiable"),
}
_SECTIONS = {"optimizer": str, "groups": list, "state": dict, "other_state": dict, "without_state": list}
_GROUP = {"parameters": list, "options": dict}


@dataclass(frozen=True)
class WrittenOptimizer:
    """An optimizer's state on its way to the disk."""

    tensors: dict[str, Tensor]
    """Name -> tensor as this process holds it, sharing the optimizer's memory."""
    document: dict[str, Any] | None
    """optimizer.json; None where the names of the tensors say all."""


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer's state as it was read, without any knowledge of the optimizer that is to have it."""

    folder: Path
    tensors: dict[str, Tensor]
    kind: str
    """Class name."""
    groups: list[dict[str, Any]] | None
    """None where there was no optimizer.json: one group of AdamW's."""
    state: dict[str, Any]
    """Parameter -> tree."""
    other_state: dict[str, Any]

    @property
    def file(self) -> Path:
        """What errors name."""
        return self.folder / (TENSORS if self.groups is None else DOCUMENT)

    @classmethod
    def load(cls, folder: Path) -> "SavedOptimizer":
        """Raises UserError where the files are damaged."""
        tensors = read_tensors(folder / TENSORS)
        if not (folder / DOCUMENT).exists():
            state: dict[str, Any] = {}
            for key in tensors:
                name, _, part = key.rpartition("/")
                state.setdefault(name, {"dict": {}})["dict"][part] = {"tensor": key}
            return cls(folder, tensors, torch.optim.AdamW.__name__, None, state, {})
        document = read_object(folder / DOCUMENT)
        _require_document(document, folder / DOCUMENT)
        kind, groups, state = document["optimizer"], document["groups"], document["state"]
        return cls(folder, tensors, kind, groups, state, document["other_state"])


def write_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> WrittenOptimizer:
    """The state of `optimizer`, sharing its memory.

    Args:
        parameters: name -> parameter, all of the model's.

    Raises:
        UserError: a state that safetensors and JSON cannot hold, or that belongs to no parameter of the model.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    writer = TreeWriter()
    state: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for key, value in _entries(optimizer):
        if isinstance(key, str):
            other[key] = writer.write(value, key, None)
        elif value:
            name = _name_of(key, names)
            state[name] = writer.write(value, name, key.device)
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        options = {key: writer.write(group[key], f"param_groups/{i}/{key}", None) for key in _kept_options(group)}
        groups.append({"parameters": [_name_of(p, names) for p in group["params"]], "options": options})
    stateless = [name for group in groups for name in group["parameters"] if name not in state]
    is_usual = type(optimizer) is torch.optim.AdamW and len(groups) == 1 and not other and _names_say_all(state)
    if is_usual and (not state or not any(parameters[name].requires_grad for name in stateless)):
        return WrittenOptimizer(writer.tensors, None)
    document = {"optimizer": type(optimizer).__name__, "groups": groups, "state": state}
    return WrittenOptimizer(writer.tensors, document | {"other_state": other, "without_state": stateless})


def parts_of_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Name -> tensor and name -> Python float of all that can be named; never raises.

    Tensors share the optimizer's memory. A sharded one that is made of tensors is given as this process's parts.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    writer = TreeWriter(strict=False)
    for key, value in _entries(optimizer):
        writer.write(value, key if isinstance(key, str) else names.get(id(key), "unnamed"), None)
    for i, group in enumerate(optimizer.param_groups):
        for key in _kept_options(group):
            writer.write(group[key], f"param_groups/{i}/{key}", None)
    return writer.tensors, writer.floats


def prepare_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: SavedOptimizer, *, num_updates: int
) -> None:
    """Check that `saved` is of this optimizer, and have it make the state that the saved values are to fill.

    For the latter it steps with gradients of zero, so weights must be restored AFTER this.

    Args:
        parameters: name -> parameter, all of the model's. num_updates: optimizer steps that the saved state has seen.

    Raises:
        UserError: it is of another optimizer, of other parameters, or not whole.
    """
    if saved.kind != type(optimizer).__name__:
        raise UserError(f"{saved.file}: the state of {saved.kind}, the run has {type(optimizer).__name__}; {FIX}")
    _check_groups(optimizer, parameters, saved)
    strange = sorted(name for name in saved.state if name not in parameters or not parameters[name].requires_grad)
    if strange:
        raise UserError(
            f"{saved.file}: holds a state of {shown(strange[0])}, which is no trained parameter of the model; {FIX}"
        )
    if saved.groups is None and (saved.state or num_updates > 0):
        missing = [name for name, p in parameters.items() if p.requires_grad and name not in saved.state]
        if missing:
            raise UserError(f"{saved.file}: has no state of {missing[0]}, which is trained; {FIX}")
    if any(not optimizer.state.get(parameters[name]) for name in saved.state):
        _make_state(optimizer)
    if saved.kind == torch.optim.AdamW.__name__:
        live = {name: optimizer.state.get(parameters[name], {}) for name in saved.state}
        _check_adamw(saved, live, num_updates)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    saved: SavedOptimizer,
    *,
    converts: bool = False,
) -> None:
    """Give a prepared optimizer the saved values.

    Args:
        converts: floating tensors take the dtype that the optimizer gives them; otherwise dtypes must be the same.

    Raises:
        UserError: a tensor or a number does not fit. ValueError: the files are damaged.
    """
    reader = TreeReader(saved.tensors, saved.file, converts=converts)
    for name, parameter in parameters.items():
        if name not in saved.state:
            optimizer.state.pop(parameter, None)
            continue
        live = optimizer.state.get(parameter)
        optimizer.state[parameter] = reader.read(saved.state[name], name, parameter.device, live)
    device = next(iter(parameters.values())).device
    others: dict[Any, Any] = {key: value for key, value in optimizer.state.items() if isinstance(key, str)}
    others = reader.read({"dict": saved.other_state}, "other_state", device, others)
    optimizer.state.update(others)
    for i, (group, kept) in enumerate(zip(optimizer.param_groups, saved.groups or [], strict=False)):
        live = {key: group[key] for key in _kept_options(group)}
        unknown = [key for key in kept["options"] if key not in live and saved.kind == torch.optim.AdamW.__name__]
        if unknown:
            raise damaged(saved.file, f"groups/{i}/options: AdamW has no {shown(unknown[0])}")
        group.update(reader.read({"dict": kept["options"]}, f"param_groups/{i}", device, live))
    if reader.unread():
        raise ValueError(f"{TENSORS} holds {reader.unread()[0]}, which {DOCUMENT} does not know")


def _require_document(document: dict[str, Any], file: Path) -> None:
    """Raise UserError where this is not the outline of optimizer.json."""
    problem = _keys_problem(document, _SECTIONS, "")
    state, stateless = document.get("state"), document.get("without_state")
    if problem is None and isinstance(state, dict) and isinstance(stateless, list):
        entries = (f"state/{name}" for name, tree in state.items() if not isinstance(tree, dict))
        problem = next((f"{entry} is no object" for entry in entries), None)
        listed = [*map(str, stateless), *state]
        twice = [name for name, count in Counter(listed).items() if count > 1]
        problem = problem or (f"without_state: {twice[0]} is listed twice" if twice else None)
        grouped: list[Any] = []
        for i, group in enumerate(document["groups"]):
            problem = problem or _keys_problem(group, _GROUP, f"groups/{i}")
            grouped += group["parameters"] if problem is None else []
        named = [*map(str, grouped)]
        unsaid, strange = {*named} - {*listed}, {*map(str, stateless)} - {*named}
        if problem is None and (unsaid or strange):
            problem = f"groups, state and without_state do not agree on {min(unsaid or strange)}"
    if problem is not None:
        raise damaged(file, problem)


def _keys_problem(section: Any, kinds: Mapping[str, type], name: str) -> str | None:
    """What of the keys, or of the kinds of their values, is not as it must be."""
    if not isinstance(section, dict):
        return f"{name} is no object"
    path = f"{name}/" if name else ""
    for key, kind in kinds.items():
        if type(section.get(key)) is not kind:
            return f"{path}{key} is {'no ' + kind.__name__ if key in section else 'missing'}"
    return next((f"{path}{key} is unknown" for key in section if key not in kinds), None)


def _check_adamw(saved: SavedOptimizer, live: Mapping[str, Mapping[str, Any]], num_updates: int) -> None:
    """What only AdamW's states promise: which there are, how many steps they saw, squares that are not negative.

    Args:
        live: parameter -> its state, as the optimizer makes it.

    Raises:
        UserError: one of them is otherwise.
    """
    if saved.other_state:
        raise damaged(saved.file, f"other_state: AdamW has no {min(saved.other_state)}")
    for name, tree in saved.state.items():
        parts = tree.get("dict")
        if tree.keys() != {"dict"} or not isinstance(parts, dict):
            raise damaged(saved.file, f"{name} is no state of AdamW")
        wanted = live.get(name) or {}
        differing = [part for part in (*wanted, *parts) if (part in wanted) != (part in parts)]
        if differing:
            problem = "is missing, the optimizer has it" if differing[0] in wanted else "is unknown to the optimizer"
            raise UserError(f"{saved.file}: {name}/{differing[0]} {problem}; {FIX}")
        for part, one in parts.items():
            is_tensor = isinstance(one, dict) and isinstance(one.get("tensor"), str) and one.keys() <= {"tensor", "cpu"}
            if not is_tensor or one.get("cpu", True) is not True:
                raise damaged(saved.file, f"{name}/{part} is no tensor")
            tensor = saved.tensors.get(one["tensor"])
            if tensor is None:
                raise damaged(saved.file, f"{name}/{part} is in {DOCUMENT} and not in {TENSORS}")
            _check_moment(f"{name}/{part}", part, tensor, saved.folder / TENSORS, num_updates)


def _check_moment(name: str, part: str, tensor: Tensor, file: Path, num_updates: int) -> None:
    """tensor: of any shape, finite."""
    if part == "step" and tensor.numel() == 1:
        steps = float(tensor)
        if not (steps.is_integer() and 1 <= steps <= num_updates):
            raise damaged(file, f"{name} is {steps:g}, and the checkpoint has {num_updates} updates")
    elif part.endswith("exp_avg_sq") and tensor.is_floating_point() and bool((tensor < 0).any()):
        raise damaged(file, f"{name} is negative, and a mean of squares never is")


def _entries(optimizer: torch.optim.Optimizer) -> list[tuple[Any, Any]]:
    """Of `optimizer.state`: a parameter or a text, and its state."""
    return list(optimizer.state.items())


def _name_of(parameter: Any, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        raise UserError(
            f"the optimizer has a parameter of shape {tuple(parameter.shape)} that is not the model's; give it the "
            "model's alone"
        )
    return names[id(parameter)]


def _names_say_all(state: dict[str, Any]) -> bool:
    """Whether every state is tensors alone, under `PARAMETER/KEY`."""
    return all(
        tree.keys() == {"dict"} and all(one.get("tensor") == f"{name}/{key}" for key, one in tree["dict"].items())
        for name, tree in state.items()
    )


def _kept_options(group: dict[str, Any]) -> list[str]:
    """Keys of what an optimizer may keep in a group between its steps. Functions and dtypes are its caller's."""
    fixed = (torch.dtype, torch.device)
    return [k for k, v in group.items() if k not in _CONFIGURED and not callable(v) and not isinstance(v, fixed)]


def _check_groups(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: SavedOptimizer
) -> None:
    if saved.groups is None:
        return
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [[_name_of(p, names) for p in group["params"]] for group in optimizer.param_groups]
    then = [group["parameters"] for group in saved.groups]
    if len(groups) != len(then):
        raise UserError(f"{saved.file}: {len(then)} parameter groups, the optimizer has {len(groups)}; {FIX}")
    for i, (mine, theirs) in enumerate(zip(groups, then, strict=True)):
        if mine != theirs:
            differing = [name for name in [*theirs, *mine] if (name in theirs) != (name in mine)]
            what = f"{differing[0]} is in one of them alone" if differing else "the order is another"
            raise UserError(
                f"{saved.file}: group {i} has {len(theirs)} parameters, the optimizer's has {len(mine)}: {what}; {FIX}"
            )


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make the state of its first step, on gradients of zero; weights may move.

    torch.distributed.checkpoint does the same.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    needs_closure = inspect.signature(optimizer.step).parameters.get("closure")
    accelerators = {parameter.device for parameter in trained if parameter.device.type != "cpu"}
    with torch.random.fork_rng(devices=accelerators, device_type=next((d.type for d in accelerators), "cuda")):
        try:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            if needs_closure is not None and needs_closure.default is inspect.Parameter.empty:
                optimizer.step(lambda: 0.0)
            else:
                optimizer.step()
        finally:
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
