"""Training loops under watch: a small classifier whose step a test writes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diagnostics import Watch
from diagnostics.health import Finding

Body = Callable[["Loop"], Any]


class Net(nn.Module):
    """(B, 8) -> (B, 4)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 32), nn.Dropout(dropout), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.first(x))))


class Loop:
    """What the body of a step works on."""

    model: Any
    optimizer: Any
    x: Tensor
    """(16, 8) float32."""
    y: Tensor
    """(16,) int64."""
    index: int

    def __init__(self, model: Any = None, optimizer: Any = None, **options: Any) -> None:
        """optimizer: a function of the parameters, an optimizer, several, or None for AdamW."""
        torch.manual_seed(0)
        self.model = Net() if model is None else model
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
        self.optimizer = make(self.model.parameters()) if callable(make) else make
        self.watch = Watch(self.model, self.optimizer, incidents=None, **options)
        self.between: Callable[[Loop], None] = lambda loop: None

    def loss(self) -> Tensor:
        return cross_entropy(self.model(self.x), self.y)

    def batch(self, index: int) -> dict[str, Any]:
        return {"x": torch.randn(16, 8), "y": torch.randint(0, 4, (16,))}

    def run(self, body: Body, num_steps: int = 12) -> list[Finding]:
        """The same batches each time."""
        torch.manual_seed(1)
        for self.index in range(num_steps):
            batch = self.batch(self.index)
            self.x, self.y = batch["x"], batch["y"]
            self.watch.step(lambda: body(self), batch=batch)
            self.between(self)
        return self.watch.findings


def train(loop: Loop) -> Tensor:
    """As it should be."""
    loop.optimizer.zero_grad()
    loss = loop.loss()
    loss.backward()
    loop.optimizer.step()
    return loss.detach()


def first(findings: list[Finding]) -> dict[str, int | None]:
    """Contract -> the step that showed it first."""
    return {finding.rule: finding.step for finding in reversed(findings)}
