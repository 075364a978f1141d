"""A trained model, used: found, opened, and asked for pictures."""

from shadowlab.inference.albedo_files import AlbedoRequest, write_albedos
from shadowlab.inference.editing_files import EditingRequest, write_edits
from shadowlab.inference.insertion_files import InsertionRequest, write_insertion
from shadowlab.inference.model import LoadedModel, Weights, open_model, task_of
from shadowlab.inference.place import CONFIG_NAME, ModelPlace, find_model, shipped_models
from shadowlab.inference.sampling import load_generator, sample, seeded_noise
from shadowlab.inference.shadow_files import write_shadows
from shadowlab.inference.starting import Starting, starting_from

__all__ = [
    "CONFIG_NAME",
    "AlbedoRequest",
    "EditingRequest",
    "InsertionRequest",
    "LoadedModel",
    "ModelPlace",
    "Starting",
    "Weights",
    "find_model",
    "load_generator",
    "open_model",
    "sample",
    "seeded_noise",
    "shipped_models",
    "starting_from",
    "task_of",
    "write_albedos",
    "write_edits",
    "write_insertion",
    "write_shadows",
]
