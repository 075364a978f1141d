"""Who owns which parameter: the optimizer, the task, the model that is called."""

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch.nn.parallel import DistributedDataParallel

from shadowlab.checks import Check
from shadowlab.training import Trainee

_SHOWN = 6


def ownership(trainee: Trainee, trainable: Sequence[str]) -> list[Check]:
    """trainable: shell patterns over the names of the parameters that the task, or the configuration, trains."""
    named = dict(trainee.unet.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    held = Counter(id(one) for group in trainee.optimizer.param_groups for one in group["params"])
    trains = {name for name, parameter in named.items() if parameter.requires_grad}
    absent = sorted(name for name in trains if held[id(named[name])] == 0)
    twice = sorted(names.get(key, "a stranger") for key, count in held.items() if count > 1)
    strangers = sum(key not in names for key in held)
    idle = sorted(names[key] for key in held if key in names and names[key] not in trains)
    wrong = [*(f"{name} in no group" for name in absent), *(f"{name} twice" for name in twice)]
    wrong += [f"{strangers} tensors that are not the model's"] if strangers else []
    wrong += [f"{name}, which is frozen" for name in idle]
    meant = {name for name in named if any(fnmatchcase(name, pattern) for pattern in trainable)}
    other = sorted(f"{name} {'is frozen' if name in meant else 'trains'}" for name in meant ^ trains)
    inner = trainee.model.module if isinstance(trainee.model, DistributedDataParallel) else trainee.model
    called = {id(parameter) for parameter in trainee.model.parameters()}
    apart = [name for name, parameter in named.items() if id(parameter) not in called]
    return [
        Check(
            "every trainable tensor is in one optimizer group",
            not wrong,
            f"{len(trains):,} tensors, each once, and no other",
            _listed(wrong) or f"{len(held):,} tensors, each once",
            "build the optimizer after the last change of the model, from its parameters that require a gradient: "
            "shadowlab/training/trainee.py, build_trainee",
        ),
        Check(
            "what trains is what the task trains",
            not other,
            f"{len(meant):,} of {len(named):,} tensors: {', '.join(trainable)}",
            _listed(other) or f"{len(trains):,} of {len(named):,} tensors",
            "something was frozen or thawed on the way: shadowlab/training/trainee.py, prepare_unet",
        ),
        Check(
            "the model that is called is the model that trains",
            inner is trainee.unet and not apart,
            "one model, whoever wraps it",
            "two models" if inner is not trainee.unet else _listed(apart) or "one",
            "forward, optimizer, validation and checkpoints must have the same module: "
            "shadowlab/training/trainee.py, build_trainee",
        ),
    ]


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
