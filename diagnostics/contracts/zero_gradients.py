"""Gradients that are there and are 0: of all parameters, of a layer that is given zeros, of what has no influence."""

from torch import nn

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step

_LOOKS, _LOOKS_OF_ALL = 3, 12


class ZeroGradients(Family):
    """What `Motion` asks of the gradients that it looks at."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num: dict[int, int] = {}  # weight -> looks in a row in which its bias has a gradient and it has not
        self._num_never: dict[int, int] = {}  # parameter -> looks; far below 0 once it had a gradient
        self._num_all: dict[str, int] = {}  # optimizer -> looks in a row in which all were 0

    def judge(self, step: Step, name: str, parameters: list[nn.Parameter], gradients: list[float]) -> None:
        """name: the optimizer's; gradients: the largest magnitude of each parameter's."""
        pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if p.grad is not None and p.requires_grad]
        if not pairs:
            return
        are_all_zero = not any(gradient for _, gradient in pairs)
        self._num_all[name] = self._num_all.get(name, 0) + 1 if are_all_zero else 0
        if self._num_all[name] >= _LOOKS:
            evidence = f"all gradients of {name} are 0, in {self._num_all[name]} looks: the loss does not change with"
            severity = "alarm" if self._num_all[name] >= _LOOKS_OF_ALL else "warning"  # rewards may come later
            evidence += " its parameters"
            self.broken("loss-without-gradient", step, evidence, subject="loss.backward", severity=severity)
        if are_all_zero:
            return
        given_zeros = self._judge_layers(step, {id(p): gradient for p, gradient in pairs})
        self._judge_never(step, pairs, given_zeros)

    def _judge_layers(self, step: Step, by_id: dict[int, float]) -> set[int]:
        """A layer whose bias has a gradient, and whose weight has one of zeros, is given zeros; ids of such weights.

        It is an alarm where the batch itself has no zeros for it.
        """
        found: list[nn.Parameter] = []
        suspected = set()
        for module in self.scene.layers():
            weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
            is_zero = by_id.get(id(weight)) == 0 and by_id.get(id(bias), 0.0) > 0
            count = self._num.get(id(weight), 0) + 1 if is_zero else 0
            self._num[id(weight)] = count
            if weight is not None and is_zero:
                suspected.add(id(weight))
                found += [weight] if count >= _LOOKS else []
        for weight in found:
            evidence = f"its gradient is 0 throughout in {self._num[id(weight)]} looks, and its bias has one: its layer"
            is_long = self._num[id(weight)] > _LOOKS  # a condition may come when the model is warm
            severity = "alarm" if is_long and not _has_zeros(step) else "warning"
            evidence += " is given zeros alone"
            self.broken_in("parameter-without-gradient", step, [weight], evidence, severity=severity)
        return suspected

    def _judge_never(self, step: Step, pairs: list[tuple[nn.Parameter, float]], given_zeros: set[int]) -> None:
        """A warning: what begins at zero may wait for others that do."""
        never, biases = [], {id(one._parameters.get("bias")) for one in self.scene.layers()}
        for parameter, gradient in pairs:
            key = id(parameter)
            if key in biases:  # that of a critic's last layer cancels out of a difference
                continue
            self._num_never[key] = -(2**30) if gradient else self._num_never.get(key, 0) + 1
            if self._num_never[key] >= _LOOKS and key not in given_zeros:
                never.append(parameter)
        if never:
            evidence = f"its gradient is there and was 0 throughout in each of {_LOOKS} looks, and others are not: a"
            evidence += " factor that begins at 0, a clamp, a softmax over one, an activation that is dead"
            self.broken_in("parameter-without-gradient", step, never, evidence, severity="warning")


def _has_zeros(step: Step) -> bool:
    """Whether an input of the batch is 0 throughout. Reads on the host: only where something is suspected."""
    inputs = step.inputs().values()
    return any(t.is_floating_point() and t.numel() and not bool(t.detach().any()) for t in inputs)
