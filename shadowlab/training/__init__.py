"""The training step and what surrounds it: optimizer, checkpoints, telemetry."""

from shadowlab.training.capture import (
    CapturedStep,
    captured_batches,
    captured_state,
    restore_bad_tensors,
    state_tensors,
)
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.checkpoint_files import (
    checkpoint_folders,
    complete_checkpoints,
    drop_old,
    foreign_entries,
    newest_sound_checkpoint,
    remove_unfinished,
    step_of,
)
from shadowlab.training.data_wait import DataWait
from shadowlab.training.eight_bit import moments_of
from shadowlab.training.optimizer import adamw, learning_rate
from shadowlab.training.saved_file import read_tensors
from shadowlab.training.sinks import Sink
from shadowlab.training.source import BatchSource, open_source
from shadowlab.training.step import (
    StepOutcome,
    StepPlace,
    forward_backward,
    objective_loss,
    training_step,
    watched_step,
)
from shadowlab.training.telemetry import Telemetry
from shadowlab.training.trainee import Trainee, build_trainee, build_unet, prepare_unet

__all__ = [
    "BatchSource",
    "CapturedStep",
    "DataWait",
    "Sink",
    "StepOutcome",
    "StepPlace",
    "Telemetry",
    "Trainee",
    "adamw",
    "build_trainee",
    "build_unet",
    "captured_batches",
    "captured_state",
    "checkpoint_folders",
    "complete_checkpoints",
    "drop_old",
    "foreign_entries",
    "forward_backward",
    "learning_rate",
    "load_checkpoint",
    "moments_of",
    "newest_sound_checkpoint",
    "objective_loss",
    "open_source",
    "prepare_unet",
    "read_tensors",
    "remove_unfinished",
    "restore_bad_tensors",
    "save_checkpoint",
    "state_tensors",
    "step_of",
    "training_step",
    "watched_step",
]
