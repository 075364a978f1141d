"""The memory plan against the measured peak, case by case."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from shadowlab.planning import format_measured, measured_peaks, plan_memory
from shadowlab.settings import load_config

CASES = {"without checkpointing": False, "with checkpointing": True}


@dataclass(frozen=True)
class MemoryCase:
    """Plan and measured peak of one case, in bytes."""

    name: str
    planned: int
    measured: int
    text: str
    """Both, moment by moment."""

    @property
    def ratio(self) -> float:
        return self.planned / self.measured

    def to_json(self) -> dict[str, Any]:
        return {"case": self.name, "planned": self.planned, "measured": self.measured, "ratio": self.ratio}


def measure_memory(
    unet: UNet2DConditionModel,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    cases: list[str] | None = None,
    on_case: Callable[[MemoryCase], None] = lambda _: None,
) -> list[MemoryCase]:
    """Plan a round of training and run it, case by case.

    Args:
        unet: to be trained, in the layout of a hub or of this project. image_size: pixels. batch_size: samples.
        cases: some of CASES; all by default.

    Raises:
        UserError, StageFailedError: as `measured_peaks`.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(Path(folder) / "unet")
        for name in cases or CASES:
            config = load_config(
                options={
                    "model.weights": folder,
                    "device": str(device),
                    "data.image_size": image_size,
                    "train.batch_size": batch_size,
                    "validation.num_samples": 2,
                    "precision": precision,
                    "model.gradient_checkpointing": CASES[name],
                },
            )
            plan = plan_memory(config, device="cpu" if device.type == "cpu" else "cuda", strategies=("single",))
            peaks = measured_peaks(config)
            [one] = plan.strategies
            text = f"{plan.num_parameters / 1e6:.0f} M parameters, {precision}, {name}\n{format_measured(plan, peaks)}"
            found.append(MemoryCase(name, one.highest.total, max(peaks.values()), text))
            on_case(found[-1])
    return found
