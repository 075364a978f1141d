"""Numbers, sizes and paths as the page shows them."""

import math
import re
from typing import Any

from markupsafe import Markup, escape

# Issues that advice refers to by `name#number`.
_OWNERS = {
    "accelerate": "huggingface/accelerate",
    "Automodel": "NVIDIA-NeMo/Automodel",
    "bitsandbytes": "bitsandbytes-foundation/bitsandbytes",
    "DeepSpeed": "deepspeedai/DeepSpeed",
    "diffusers": "huggingface/diffusers",
    "guided-diffusion": "openai/guided-diffusion",
    "OLMo-core": "allenai/OLMo-core",
    "pytorch": "pytorch/pytorch",
    "sd-scripts": "kohya-ss/sd-scripts",
    "torchtitan": "pytorch/torchtitan",
    "transformers": "huggingface/transformers",
    "trl": "huggingface/trl",
    "ultralytics": "ultralytics/ultralytics",
}
_ISSUE = re.compile(rf"\b({'|'.join(map(re.escape, _OWNERS))})#(\d+)\b")


def number(value: float) -> str:
    """Four significant digits, whole numbers in full; `NaN`, `Inf` and `-Inf` as words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.4g}"


def plain(value: Any) -> str:
    """Any value of a record in one line."""
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) if not any(isinstance(v, dict | list) for v in value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return str(value)


def in_words(key: str) -> str:
    """`Validation loss fell` for `validation_loss_fell`; names that are not only small letters are kept."""
    return key.replace("_", " ").capitalize() if re.fullmatch(r"[a-z0-9_ ]+", key) else key


def size(num_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} bytes"


def moment(iso: str) -> str:
    """`2026-01-31 09:30 UTC`; empty for what is no ISO time of UTC."""
    return f"{iso[:10]} {iso[11:16]} UTC" if re.fullmatch(r"[\d-]{10}T[\d:]{8}\+00:00", iso) else ""


def with_links(text: str) -> list[tuple[str, str | None]]:
    """Pieces of `text`, each with the address of the issue that it names, or None."""
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for found in _ISSUE.finditer(text):
        pieces.append((text[end : found.start()], None))
        pieces.append((found[0], f"https://github.com/{_OWNERS[found[1]]}/issues/{found[2]}"))
        end = found.end()
    return [piece for piece in (*pieces, (text[end:], None)) if piece[0]]


def prose(text: str) -> Markup:
    """A sentence for the page: what stands between backticks as code, the issues that it names as links."""
    return Markup().join(_code(piece) if is_code else _linked(piece) for piece, is_code in _parts(text))


def _parts(text: str) -> list[tuple[str, bool]]:
    """Pieces, and whether each is code; a backtick that is never closed is a character like others."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    return [(piece, bool(number % 2)) for number, piece in enumerate(pieces) if piece]


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _linked(text: str) -> Markup:
    link = Markup('<a href="{0}" rel="noreferrer" title="opens {0}">{1}</a>')
    return Markup().join(
        escape(piece) if address is None else link.format(address, piece) for piece, address in with_links(text)
    )
