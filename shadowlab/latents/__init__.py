"""Latents that are encoded once and read in every step thereafter."""
