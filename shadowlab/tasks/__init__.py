"""What is trained for: each task in a folder of its own."""

from shadowlab.tasks.shadow.charts import CHARTS
from shadowlab.tasks.shadow.check import check_dataset, listing
from shadowlab.tasks.shadow.dataset import ShadowDataset, open_dataset, resolve_path
from shadowlab.tasks.shadow.figures import comparison_grid, save_picture, sweep_grid
from shadowlab.tasks.shadow.images import load_picture
from shadowlab.tasks.shadow.light import EMBEDDING_DIM, RANGES, SCALAR_DIM, embed_light
from shadowlab.tasks.shadow.metrics import psnr, soft_iou
from shadowlab.tasks.shadow.render.dataset import render_dataset
from shadowlab.tasks.shadow.samples import Batch, Picture, Sample, collate
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.tasks.task import EncodedBatch, LatentPart, ModelInputs, Task

__all__ = [
    "CHARTS",
    "EMBEDDING_DIM",
    "RANGES",
    "SCALAR_DIM",
    "Batch",
    "EncodedBatch",
    "LatentPart",
    "ModelInputs",
    "Picture",
    "Sample",
    "ShadowDataset",
    "ShadowTask",
    "Task",
    "check_dataset",
    "collate",
    "comparison_grid",
    "embed_light",
    "listing",
    "load_picture",
    "open_dataset",
    "psnr",
    "render_dataset",
    "resolve_path",
    "save_picture",
    "soft_iou",
    "sweep_grid",
]
