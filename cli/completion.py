"""What a shell is offered when TAB is pressed. Nothing here imports torch: it must answer at once."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from shadowlab.settings import Config, describe_key, describe_keys, preset_names

Complete = Callable[[str], list[str]]  # what is typed so far -> the words that it may become

_MOST = 200  # more names help nobody


def complete_presets(incomplete: str) -> list[str]:
    return _beginning(preset_names(), incomplete)


def complete_config_files(incomplete: str) -> list[str]:
    """Presets, and YAML files."""
    files = [path for path in _paths(incomplete) if path.endswith(("/", ".yaml", ".yml"))]
    return [*complete_presets(incomplete), *files]


def complete_runs(incomplete: str) -> list[str]:
    """`latest`, the runs in the usual folder from the newest on, and folders anywhere."""
    runs = Path(Config().output_dir)
    try:
        found = [(path.stat().st_mtime, path.name) for path in runs.iterdir() if path.is_dir()]
    except OSError:  # no run yet; an offer need not say so
        found = []
    names = _beginning(["latest", *(name for _, name in sorted(found, reverse=True))], incomplete)
    return [*names, *(path for path in _paths(incomplete) if path.endswith("/") and path != f"{runs}/")]


def complete_assignments(incomplete: str) -> list[str]:
    """`--set`: the key, then what it may be."""
    name, equals, value = incomplete.partition("=")
    keys = {key.name for key in describe_keys()}
    if not equals or name not in keys:
        return _beginning((f"{key.name}=" for key in describe_keys()), incomplete)
    return [f"{name}={one}" for one in _values(name, value)]


def complete_key(name: str) -> Complete:
    """Of the option of one key of the configuration."""

    def complete(incomplete: str) -> list[str]:
        return _values(name, incomplete)

    return complete


def _values(name: str, incomplete: str) -> list[str]:
    key = describe_key(name)
    known = {"true or false": ("true", "false")}.get(key.type) or key.choices or (key.default, *key.examples)
    words = _beginning((str(one) for one in known if one is not None), incomplete)
    return [
        *words,
        *(_paths(incomplete) if name in ("data.path", "data.latents", "model.weights", "model.vae") else ()),
    ]


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Files and folders (these with a slash) that begin so."""
    folder, slash, _ = incomplete.rpartition("/")
    try:
        place = Path(folder + slash or ".").expanduser()
        found = sorted(islice((one for one in place.iterdir() if not one.name.startswith(".")), _MOST))
        names = [f"{folder}{slash}{one.name}{'/' if one.is_dir() else ''}" for one in found]
    except (OSError, RuntimeError):  # a folder that is not there, ~NAME that is nobody: there is nothing to offer
        names = []
    return _beginning(names, incomplete)
