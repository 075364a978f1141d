"""The shadow task (arXiv 2412.11972): object, mask and light to the grey shadow map of the ground."""

from shadowlab.tasks.shadow.check import check_dataset, listing
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.render.dataset import render_dataset
from shadowlab.tasks.shadow.samples import Sample, collate

__all__ = [
    "Sample",
    "check_dataset",
    "collate",
    "listing",
    "open_dataset",
    "render_dataset",
]
