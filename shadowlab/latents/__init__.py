"""Latents that are encoded once and read in every step thereafter."""

from shadowlab.latents.encode import encode_dataset
from shadowlab.latents.reading import LatentDataset, collate_latents, encode_command, encoded_latents, require_index

__all__ = [
    "LatentDataset",
    "collate_latents",
    "encode_command",
    "encode_dataset",
    "encoded_latents",
    "require_index",
]
