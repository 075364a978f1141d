"""The shadow task (arXiv 2412.11972): object, mask and light to the grey shadow map of the ground."""

from shadowlab.tasks.shadow.compositing import Background, Fit, composite, map_levels, parse_colour, read_background
from shadowlab.tasks.shadow.dataset import index_dataset, open_dataset
from shadowlab.tasks.shadow.drawn_files import FilesReport, generate_files
from shadowlab.tasks.shadow.generate import PreparedObject, ShadowGenerator
from shadowlab.tasks.shadow.light import RANGES, Light, light_position
from shadowlab.tasks.shadow.light_presets import PRESETS, preset_light
from shadowlab.tasks.shadow.object_picture import ObjectPicture, object_picture, read_object_picture
from shadowlab.tasks.shadow.render.dataset import render_dataset
from shadowlab.tasks.shadow.request import ShadowRequest, Style, Swept, make_request
from shadowlab.tasks.shadow.request_list import read_requests
from shadowlab.tasks.shadow.samples import Sample, collate
from shadowlab.tasks.shadow.view_fit import fit_view

__all__ = [
    # data sets
    "RANGES",
    "Light",
    "Sample",
    "collate",
    "fit_view",
    "index_dataset",
    "light_position",
    "open_dataset",
    "render_dataset",
    # a trained model's shadows of one's own objects
    "PRESETS",
    "ObjectPicture",
    "PreparedObject",
    "ShadowGenerator",
    "object_picture",
    "preset_light",
    "read_object_picture",
    # on a background
    "Background",
    "Fit",
    "composite",
    "map_levels",
    "parse_colour",
    "read_background",
    # as files
    "FilesReport",
    "ShadowRequest",
    "Style",
    "Swept",
    "generate_files",
    "make_request",
    "read_requests",
]
