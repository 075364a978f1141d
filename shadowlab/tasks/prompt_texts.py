"""Prompts in words: the embedding of each distinct text, computed once and kept by the content of text and encoder.

The text encoder is in memory only while embeddings are computed, never while anything is trained. Texts are padded to
what the encoder reads, as Stable Diffusion's pipelines in diffusers do it, so that all embeddings have one shape.

Legend: N tokens, D width of cross-attention.
"""

import gc
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diagnostics.files import reason_of, replace
from shadowlab.data import FileSource, one_line
from shadowlab.errors import UserError
from shadowlab.models import weights_folder
from shadowlab.own_cache import make_cache_folder, require_own
from shadowlab.seeding import normal
from shadowlab.tasks.prompt import encoder_digest, encoder_parts, own_file, text_encoder_folder

PROMPT_KEY = "prompt_embedding"
NUM_TEXT_TOKENS = 77
"""Of the random embeddings, which stand for texts where weights are random; CLIP's text encoders read as many."""
_CACHE = "prompts"


def kept_prompts(
    weights: str, width: int, texts: Collection[str], *, seed: int, downloads: bool = True
) -> Mapping[str, FileSource]:
    """Of each text the file that holds its embedding, (N, D) float32, as `prompt_embedding` of a safetensors file.

    Args:
        weights: of the model, as `empty_prompt`; random weights have random embeddings, a function of seed and text.
        width: D, what the model's cross-attention takes.
        downloads: whether a hub id's text encoder may be fetched.

    Raises:
        UserError: there is no text encoder, it does not fit or load, a text is longer than it reads, or nothing can be
            kept in this user's cache.
        MissingDependencyError: transformers is not installed, or the hub does not give the text encoder.
    """
    root = None if weights == "random" else _encoder_of(weights, downloads)
    basis = f"random {seed} {width}" if root is None else encoder_digest(root)
    try:
        folder = make_cache_folder(_CACHE)
        paths = {text: folder / f"{_name_of(basis, text)}.safetensors" for text in sorted(texts)}
        absent = [text for text, path in paths.items() if not path.exists()]
        found = _random(absent, width, seed) if root is None else _computed(root, absent, width)
        for text, embedding in found:
            replace(paths[text], save({PROMPT_KEY: embedding.contiguous()}))
            paths[text].chmod(0o600)
        for path in paths.values():
            require_own(path)
        return {text: FileSource(path, f"prompt {_shown(text)}", path.stat().st_size) for text, path in paths.items()}
    except OSError as error:
        raise UserError(
            f"embeddings of prompts cannot be kept in this user's cache ({reason_of(error)}); set XDG_CACHE_HOME to a "
            "folder of your own with room"
        ) from error


def _encoder_of(weights: str, downloads: bool) -> Path:
    """Raises UserError where there is no text encoder for words."""
    try:
        if own_file(weights) is not None and not (weights_folder(weights) / "text_encoder").is_dir():
            raise UserError("they bring the empty prompt alone")
        return text_encoder_folder(weights, downloads)
    except UserError as error:
        raise UserError(
            f"the data set has a column prompt, and {weights} no text encoder to read it; put text_encoder/ and "
            "tokenizer/ of the same pipeline next to unet/, give embeddings (column prompt_embedding), or take the "
            "column out"
        ) from error


def _computed(root: Path, texts: Collection[str], width: int) -> Iterator[tuple[str, Tensor]]:
    if not texts:
        return
    with encoder_parts(root) as (tokenizer, encoder):
        for text in texts:
            yield text, _embedding(tokenizer, encoder, text, width, root)
    del tokenizer, encoder
    gc.collect()  # its modules refer to each other: it is gone before the UNet comes


@torch.no_grad()
def _embedding(tokenizer: Any, encoder: Any, text: str, width: int, root: Path) -> Tensor:
    most = tokenizer.model_max_length
    needed = len(tokenizer(text).input_ids)
    if needed > most:
        raise UserError(f"prompt {_shown(text)}: {needed} tokens, and the text encoder reads {most}; shorten it")
    tokens = tokenizer(text, padding="max_length", max_length=most, return_tensors="pt").input_ids
    found: Tensor = encoder(tokens)[0][0].float().clone()
    if found.shape[-1] != width:
        raise UserError(
            f"{root}: its text encoder gives {found.shape[-1]} numbers a token, the model's cross-attention takes "
            f"{width}: take text encoder and UNet of one model"
        )
    return found


def _random(texts: Collection[str], width: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    return ((text, normal((NUM_TEXT_TOKENS, width), seed, "prompt", text)) for text in texts)


def _name_of(basis: str, text: str) -> str:
    return hashlib.sha256(f"prompt text 1\n{basis}\n{text}".encode()).hexdigest()


def _shown(text: str) -> str:
    return repr(one_line(text if len(text) <= 60 else f"{text[:57]}..."))
