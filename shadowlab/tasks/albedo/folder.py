"""The folder layout.

    beauty/ID.png (or .jpg, .jpeg)   albedo/ID.png (or .jpg, .jpeg)   valid/ID.png (optional: white counts, black does
    not)   metadata.json:
    {"colour_space": {"beauty": "srgb", "albedo": "linear"}, "samples": {"ID": {"object": "obj_0001"}}}

`samples` and `object` are optional: without, each sample is an object of its own. `colour_space` says what the values
of the files mean; the options `task_options.beauty_space` and `albedo_space` say it where the data set does not.
"""

METADATA = "metadata.json"
FOLDERS = {"beauty": "beauty", "albedo": "albedo", "valid": "valid"}
"""Role -> name of its folder."""
