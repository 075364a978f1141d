"""Packages that only some configurations need: asked for before any work, and missed in one sentence."""

from importlib.util import find_spec

from shadowlab.errors import MissingDependencyError
from shadowlab.settings import Config

_OPTIMIZERS = {"adamw8bit": ("bitsandbytes", "low-memory")}
_TRACKERS = {"wandb": ("wandb", "wandb"), "mlflow": ("mlflow", "mlflow")}


def require_extras(config: Config) -> None:
    """Raise MissingDependencyError where a package of an extra that `config` asks for is not installed.

    Imports none of them: some take seconds.
    """
    name = config.optimizer.name
    if name in _OPTIMIZERS:
        _require(f"optimizer.name={name}", *_OPTIMIZERS[name])
    for tracker in config.tracking:
        require_tracker(tracker)


def require_tracker(name: str) -> None:
    """The same for a name of `tracking`; TensorBoard needs no extra."""
    if name in _TRACKERS:
        _require(f"tracking={name}", *_TRACKERS[name])


def extra_is_absent(
    asked: str, package: str, extra: str, problem: str = "it is not installed"
) -> MissingDependencyError:
    """The error of what was asked for, the package that it needs, and the extra of shadowlab that brings it."""
    return MissingDependencyError(f"{asked} needs {package} ({problem}): pip install 'shadowlab[{extra}]'")


def _require(asked: str, package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise extra_is_absent(asked, package, extra)
