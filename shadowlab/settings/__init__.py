"""The configuration: its schema, and how files and options become one."""

from shadowlab.settings.files import dump_config, load_config, preset_names
from shadowlab.settings.schema import (
    MAX_IMAGE_SIZE,
    Config,
    DiagnosticsConfig,
    DistributedConfig,
    OptimizerConfig,
    PrecisionName,
)

__all__ = [
    "MAX_IMAGE_SIZE",
    "Config",
    "DiagnosticsConfig",
    "DistributedConfig",
    "OptimizerConfig",
    "PrecisionName",
    "dump_config",
    "load_config",
    "preset_names",
]
