"""The model, optimizer and step on which overhead is measured."""

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diagnostics import Watch
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions
from shadowlab.models import ModelSpec, RectifiedFlow, adapt, architecture_config, predict, remove_cross_attention

# The kind of model that this project trains: [x_t, object latent, mask], and an embedding.
SPEC = ModelSpec(in_channels=9, inputs=("x_t", "object", "mask"), widening="zero", embedding_dim=768)
_SMALLEST_WIDTH = 8


def narrowed_sdxl(num_parameters: float) -> UNet2DConditionModel:
    """SDXL's UNet as this project trains it, every width divided by the same number. Depth and heads' width stay."""
    full = 2.02e9
    config = architecture_config("sdxl")
    step = 32 if num_parameters > 2e7 else _SMALLEST_WIDTH
    width = max(_SMALLEST_WIDTH, step * round(320 * math.sqrt(num_parameters / full) / step))
    widths = [width, 2 * width, 4 * width]
    config |= {
        "block_out_channels": widths,
        "attention_head_dim": [max(1, channels // 64) for channels in widths],  # numbers of heads, by diffusers' habit
        "norm_num_groups": math.gcd(32, width),
        "cross_attention_dim": _SMALLEST_WIDTH,  # removed below
        "addition_time_embed_dim": _SMALLEST_WIDTH,
        "projection_class_embeddings_input_dim": 7 * _SMALLEST_WIDTH,
    }
    unet = UNet2DConditionModel.from_config(config)
    remove_cross_attention(unet)
    adapt(unet, SPEC)
    return unet.train()


class Trial:
    """One model, one optimizer, one batch; `step` is what a training loop does with them."""

    def __init__(self, unet: Any, batch: int, size: int, device: torch.device) -> None:
        self.unet, self.device = unet.to(device), device
        self.parameters = list(self.unet.parameters())
        self.num_parameters = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        self.batch = {
            "data": torch.randn(batch, 4, size, size, device=device),
            "concatenated": torch.randn(batch, SPEC.in_channels - LATENT_CHANNELS, size, size, device=device),
            "embedding": torch.randn(batch, SPEC.embedding_dim or 0, device=device),
        }
        self.part = "before"  # of the step that runs

    def step(self, noted_by: Watch | None = None) -> float:
        """Reads loss and gradient norm once, before the optimizer moves, as a loop that checks them does.

        noted_by: gets them, as in this project's training step.
        """
        self.part = "forward"
        self.optimizer.zero_grad()
        data = self.batch["data"]
        noise, t = torch.randn_like(data), torch.rand(len(data), device=self.device)
        x_t = t[:, None, None, None] * data + (1 - t[:, None, None, None]) * noise
        conditions = Conditions(self.batch["concatenated"], self.batch["embedding"])
        velocity = predict(self.unet, x_t, RectifiedFlow().timesteps(t), conditions)
        loss = (velocity - (data - noise)).square().mean()
        self.part = "backward"
        loss.backward()
        self.part = "clip"
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.part = "loss read"
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if noted_by is not None:
            noted_by.note(loss=loss_value, grad_norm=norm_value)
        self.part = "optimizer"
        self.optimizer.step()
        self.part = "after"
        return loss_value

    def watched(self, watch: Watch, step_index: int) -> float:
        return watch.step(lambda: self.step(watch), batch=self.batch, step_index=step_index)
