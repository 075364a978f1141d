"""The configuration: its schema, how files and options become one, and all that is known of its keys."""

from shadowlab.settings.description import (
    KeyDescription,
    describe_key,
    describe_keys,
    describe_sections,
    json_schema,
)
from shadowlab.settings.files import (
    DEFAULT_PRESET,
    ResolvedConfig,
    checked_section,
    dump_config,
    load_config,
    preset_names,
    resolve_config,
)
from shadowlab.settings.keys import Decides, Marks, Section, key, values
from shadowlab.settings.origins import format_origins
from shadowlab.settings.request import Request
from shadowlab.settings.schema import (
    MAX_IMAGE_SIZE,
    Config,
    DiagnosticsConfig,
    DistributedConfig,
    OptimizerConfig,
    PrecisionName,
)

__all__ = [
    # One configuration
    "Config",
    "DiagnosticsConfig",
    "DistributedConfig",
    "OptimizerConfig",
    "PrecisionName",
    "MAX_IMAGE_SIZE",
    "values",
    # From presets, files and options, and back
    "DEFAULT_PRESET",
    "Request",
    "ResolvedConfig",
    "dump_config",
    "format_origins",
    "load_config",
    "preset_names",
    "resolve_config",
    # A section that is described elsewhere
    "Section",
    "checked_section",
    "key",
    # Its keys as data
    "Decides",
    "KeyDescription",
    "Marks",
    "describe_key",
    "describe_keys",
    "describe_sections",
    "json_schema",
]
