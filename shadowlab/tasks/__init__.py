"""What is trained for: each task in a folder of its own, behind one protocol."""

from typing import TYPE_CHECKING, Any

import torch

from shadowlab.errors import UserError
from shadowlab.settings import TASK_MODEL, Config, checked_section, describe_keys
from shadowlab.tasks.evaluation import TRUTH, Ensemble, Evaluation, Tracks
from shadowlab.tasks.exported import Exported, PipelineCode, ProgramInput, Trial
from shadowlab.tasks.prompt import keep_prompt
from shadowlab.tasks.reference import ObjectiveReference, RawVae, TaskReference
from shadowlab.tasks.rendering import render_samples
from shadowlab.tasks.task import (
    R2,
    Ablation,
    Augmentation,
    Baseline,
    Criterion,
    Guidance,
    Metric,
    Probe,
    Task,
    TaskBatch,
)
from shadowlab.tasks.vae_checks import vae_is_frozen

if TYPE_CHECKING:
    from shadowlab.models import ImageVae

__all__ = [
    "R2",
    "Ablation",
    "Augmentation",
    "TRUTH",
    "Baseline",
    "Criterion",
    "Ensemble",
    "Evaluation",
    "Exported",
    "Guidance",
    "Metric",
    "ObjectiveReference",
    "PipelineCode",
    "Probe",
    "RawVae",
    "ProgramInput",
    "Task",
    "TaskBatch",
    "TaskReference",
    "Tracks",
    "Trial",
    "keep_prompt",
    "open_task",
    "render_samples",
    "task_class",
    "vae_is_frozen",
]


def task_class(name: str) -> type[Any]:
    """The class of a task, imported when it is asked for.

    Raises:
        UserError: there is no such task.
    """
    match name:
        case "shadow":
            from shadowlab.tasks.shadow.task import ShadowTask

            return ShadowTask
        case "albedo":
            from shadowlab.tasks.albedo.task import AlbedoTask

            return AlbedoTask
        case "insertion":
            from shadowlab.tasks.insertion.task import InsertionTask

            return InsertionTask
        case "editing":
            from shadowlab.tasks.editing.task import EditingTask

            return EditingTask
    raise UserError(f"task: there is no task {name!r}; there are: shadow, albedo, insertion, editing")


def open_task(config: Config, device: torch.device | None = None, *, vae: "ImageVae | None" = None) -> Task[Any]:
    """The configured task.

    Args:
        device: load the configured VAE onto it; without, the task encodes and decodes nothing.
        vae: use this one instead.

    Raises:
        UserError: no such task, an option or an augmentation that it does not have, or a VAE that cannot be read.
        TypeError: the task declares an option that decides the model, or its numbers, elsewhere than under
            `task_options.model`, where the model hash and a resume look for them.
    """
    kind = task_class(config.task)
    for option in describe_keys(kind.options(), "task_options."):
        wanted = "model" if option.section == f"task_options.{TASK_MODEL}" else "nothing"
        if option.marks.decides != wanted:
            raise TypeError(
                f"{option.name}: the model hash and a resume look at task_options.{TASK_MODEL} alone, whose options "
                "all decide the model"
            )
    task: Task[Any] = kind(config, checked_section(kind.options(), config.task_options, "task_options"))
    if config.data.augment.is_on and task.augmentation is None:
        raise UserError(
            f"data.augment ({config.data.augment.text}): the task {config.task} has no augmentation; set it to 0"
        )
    if vae is not None:
        task.vae = vae
    elif device is not None:
        task.load_vae(device)
    return task
