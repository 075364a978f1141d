"""Judging a model on a fixed grid of (sample, t, noise)."""

from shadowlab.evaluation.fixed_grid import FixedGrid, GridResult

__all__ = ["FixedGrid", "GridResult"]
