"""A small model and samples that make it fail in one phase of the step, in any host."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Phase = Literal["data", "forward", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)
BATCH_SIZE = 4
QUIET: dict[str, Any] = {  # options of Lightning's trainer
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(nn.Module):
    """Two layers and a loss. Its inputs decide what fails: a root of what is negative (shift), the derivative of a root
    of zero (keep), a gradient that is exactly zero (gain)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor, shift: Tensor, keep: Tensor, gain: Tensor) -> dict[str, Tensor]:
        """x: (B, 4), the others (B, 1) -> `loss` (), all float32."""
        hidden = torch.tanh(self.first(x))
        hidden = torch.sqrt(hidden + 1.5 - shift)  # forward
        size = torch.sqrt((hidden * keep).square().sum(1, keepdim=True))  # backward
        predicted = self.last(hidden) + size
        return {"loss": ((predicted - y).square() * gain).mean()}


def made_net() -> Net:
    """With the same weights each time."""
    torch.manual_seed(1)
    return Net()


class Samples(Dataset[dict[str, Tensor]]):
    """Samples of so many batches, all of them sound at first: x (4,), the others (1,), all float32."""

    def __init__(self, num_batches: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self._samples = [
            {"x": torch.randn(4, generator=random), "y": torch.randn(1, generator=random)}
            | {"shift": torch.zeros(1), "keep": torch.ones(1), "gain": torch.ones(1)}
            for _ in range(num_batches * BATCH_SIZE)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._samples[index]

    def break_sample(self, phase: Phase, batch: int, sample: int) -> None:
        """Make a batch fail in a phase, by this sample of it. All up to this batch have no gradient where the optimizer
        is to fail: with an eps of 0 it divides 0 by 0."""
        bad = self._samples[batch * BATCH_SIZE + sample]
        if phase == "data":
            bad["x"][1] = torch.nan
        elif phase == "forward":
            bad["shift"].fill_(3.0)
        elif phase == "backward":
            bad["keep"].zero_()
        else:
            for one in self._samples[: (batch + 1) * BATCH_SIZE]:
                one["gain"].zero_()
