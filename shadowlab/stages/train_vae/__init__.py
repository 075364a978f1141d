"""train-vae: the small VAEs that ship with the package."""

from shadowlab.stages.train_vae.loop import train_vae
from shadowlab.stages.train_vae.stock import stock_of

__all__ = [
    "stock_of",
    "train_vae",
]
