"""train-vae: the small VAE that ships with the package."""

from shadowlab.stages.train_vae.loop import train_vae

__all__ = [
    "train_vae",
]
