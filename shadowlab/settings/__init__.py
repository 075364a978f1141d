"""The configuration: its schema, how files and options become one, and all that is known of its keys."""

from shadowlab.settings.augment import AugmentConfig, uncached
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
    load_kept_config,
    preset_names,
    resolve_config,
)
from shadowlab.settings.identity import START_FILE, TASK_MODEL
from shadowlab.settings.keys import Decides, Marks, Section, key, values
from shadowlab.settings.origins import format_origins
from shadowlab.settings.request import Request
from shadowlab.settings.schema import (
    MAX_IMAGE_SIZE,
    CheckpointConfig,
    Config,
    DiagnosticsConfig,
    DistributedConfig,
    OptimizerConfig,
    PrecisionName,
    TrainConfig,
)
from shadowlab.settings.yaml_text import parse_yaml

__all__ = [
    # One configuration
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DiagnosticsConfig",
    "DistributedConfig",
    "OptimizerConfig",
    "PrecisionName",
    "TrainConfig",
    "MAX_IMAGE_SIZE",
    "uncached",
    "values",
    # From presets, files and options, and back
    "DEFAULT_PRESET",
    "Request",
    "ResolvedConfig",
    "dump_config",
    "format_origins",
    "load_config",
    "load_kept_config",
    "parse_yaml",
    "preset_names",
    "resolve_config",
    # A section that is described elsewhere
    "START_FILE",
    "TASK_MODEL",
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
