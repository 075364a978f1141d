"""Versions of Python and of the packages that shadowlab needs, and its optional extras.

What is required is read from the installed package's own metadata, so that it is stated in pyproject.toml alone.
"""

import importlib
import platform
from collections.abc import Iterator
from importlib import metadata

from shadowlab import __version__
from shadowlab.doctor.item import Item

_TOPIC = "versions"
_MODULES = {"pyyaml": "yaml", "pillow": "PIL"}  # where a package's module has another name
_FROM_SOURCES = "pip install -e . (in the checkout)"


def packages() -> Iterator[Item]:
    """shadowlab and Python, each required package, then each extra."""
    yield Item(_TOPIC, "ok", f"shadowlab {__version__}, Python {platform.python_version()}, {platform.platform()}")
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in metadata.requires("shadowlab") or ()]
        extras = metadata.metadata("shadowlab").get_all("Provides-Extra") or []
    except ModuleNotFoundError as missing:  # packaging; PackageNotFoundError is one, too
        yield Item(_TOPIC, "failed", f"shadowlab is not installed here ({missing})", _FROM_SOURCES)
        return
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield _required(one.name, str(one.specifier))
    for extra in extras:
        needed = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        yield _optional(extra, [(one.name, str(one.specifier)) for one in needed])


def _required(name: str, specifier: str) -> Item:
    """A package must be there in a version that fits, and its import must succeed."""
    install = f'pip install "{name}{specifier}"'
    version = _version(name)
    if version is None:
        return Item(_TOPIC, "failed", f"{name} is absent", install)
    if not _fits(version, specifier):
        return Item(_TOPIC, "failed", f"{name} {version}, needed is {specifier}", install)
    try:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # whatever a broken installation raises: it is what the user came to hear
        problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Item(
            _TOPIC, "failed", f"{name} {version} cannot be imported ({problem})", f"{install} --force-reinstall"
        )
    return Item(_TOPIC, "ok", f"{name} {version}")


def _optional(extra: str, needed: list[tuple[str, str]]) -> Item:
    missing = [(name, spec) for name, spec in needed if not _fits(_version(name), spec)]
    if not missing:
        return Item(_TOPIC, "ok", f"extra `{extra}`: {', '.join(name for name, _ in needed)}")
    names = ", ".join(name for name, _ in missing)
    quoted = " ".join(f'"{name}{spec}"' for name, spec in missing)
    return Item(_TOPIC, "note", f"extra `{extra}` is not complete: {names}", f"if you want it: pip install {quoted}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str | None, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return version is not None and SpecifierSet(specifier).contains(version, prereleases=True)
