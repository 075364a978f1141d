"""What training needs in memory, item by item, from the built model."""

import torch
from torch import nn

from shadowlab.config import Config

GIB = 1024**3


def memory_items(
    config: Config, unet: nn.Module, vae_parameters: int, activation_bytes_per_sample: float
) -> dict[str, float]:
    """Item -> GiB for one process of the configured run.

    Weights, gradients and optimizer states are counted exactly. Activations are estimated from what autograd saves
    for small samples; with gradient checkpointing the block that is being recomputed comes on top.
    """
    weight_bytes = sum(p.numel() * p.element_size() for p in unet.parameters())
    trained = [p for p in unet.parameters() if p.requires_grad]
    trained_bytes = sum(p.numel() * p.element_size() for p in trained)
    items = {
        "UNet weights": weight_bytes,
        "gradients": trained_bytes,
        "AdamW moments": 2 * trained_bytes,
        "EMA (float32)": sum(p.numel() for p in trained) * 4 if config.train.ema_decay is not None else 0,
        "weights set aside while the EMA is judged": trained_bytes if config.train.ema_decay is not None else 0,
        "VAE weights (float32)": vae_parameters * 4,
        "activations (estimated)": activation_bytes_per_sample * config.train.batch_size,
    }
    return {name: size / GIB for name, size in items.items()}


class SavedBytes:
    """Counts what autograd keeps for the backward pass, weights left out; a context manager."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __enter__(self) -> "SavedBytes":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
