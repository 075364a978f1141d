"""Paths among the options of a task."""

from pathlib import Path


def checked_place(value: str | None) -> str | None:
    """The path as it is, once it can be asked for. Raises ValueError where it is empty or could be no place."""
    if value == "":
        raise ValueError("must name a place, or be null")
    try:
        Path(value or ".").expanduser().exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"no such place ({error}); write the path out") from None
    return value
