"""The embedding of the empty prompt, which is all that cross-attention is ever told: computed once, then kept.

The text encoder is in memory only while the embedding is computed, never while anything is trained.

Legend: N tokens, D width of cross-attention.
"""

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from diagnostics.files import read_bytes, reason_of, replace, sha256_of
from shadowlab.data import one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.models import ImageVae, architecture_of, weights_folder
from shadowlab.own_cache import cache_folder, make_cache_folder, require_own
from shadowlab.seeding import normal
from shadowlab.settings import Config

NUM_TOKENS = 2
"""Of an empty text without padding: its beginning and its end, as Marigold's pipeline in diffusers encodes it."""
_PARTS = ("text_encoder", "tokenizer")
_KEY = "empty_prompt"
_CACHE = "prompts"
_OWN = "empty_prompt.safetensors"
_MOST_BYTES = 2**24


class EmptyPrompt:
    """The empty prompt of a configured model, found when it is first asked for.

    Args:
        file: of `task_options.empty_prompt`; see `empty_prompt`.

    Attributes:
        downloads: whether a hub id's text encoder may be fetched.
    """

    def __init__(self, config: Config, file: str | None) -> None:
        self._config, self._file, self.downloads = config, file, False

    @property
    def width(self) -> int:
        """D, of the configured weights' cross-attention."""
        model = self._config.model
        return int(architecture_of(model.weights, model.architecture)["cross_attention_dim"])

    def of(self, vae: ImageVae) -> Tensor:
        """(N, D) float32 on the CPU; zeros for a VAE of fake tensors, of which nothing is read.

        Raises:
            UserError: as `empty_prompt`.
        """
        if isinstance(next(vae.autoencoder.parameters()), FakeTensor):  # nothing is read for a plan
            return torch.zeros(NUM_TOKENS, self.width)
        return self._found

    @cached_property
    def _found(self) -> Tensor:
        model = self._config.model
        return empty_prompt(
            model.weights, self.width, file=self._file, seed=self._config.seed, downloads=self.downloads
        )


def empty_prompt(weights: str, width: int, *, file: str | None, seed: int, downloads: bool = True) -> Tensor:
    """The embedding of the empty prompt, (N, D) float32 on the CPU.

    Args:
        weights: of the model: `random`, which has no text encoder: then random numbers; a folder of a pipeline in
            diffusers' layout, or its `unet/`; or a hub id.
        width: D, what the model's cross-attention takes.
        file: a safetensors file that holds it; None: `own_file`, else from the text encoder next to the weights, once,
            and from this user's cache thereafter.
        seed: of the random numbers.
        downloads: whether a hub id's text encoder may be fetched.

    Raises:
        UserError: there is neither file nor text encoder, or what they give does not fit.
        MissingDependencyError: transformers is not installed, or the hub does not give the text encoder.
    """
    if file is not None:
        return _fitting(_read(Path(file).expanduser(), _KEY), width, one_line(file))
    if weights == "random":
        return normal((NUM_TOKENS, width), seed, "empty-prompt")
    own = own_file(weights)
    if own is not None:
        return _fitting(_read(own, _KEY), width, one_line(str(own)))
    root = text_encoder_folder(weights, downloads)
    kept = _kept_path(root)
    if kept is not None:
        with suppress(UserError, OSError):
            require_own(kept)
            return _fitting(_read(kept, _KEY), width, str(kept))
    found = _fitting(computed(root), width, str(root / "text_encoder"))
    if kept is not None:
        with suppress(OSError):  # no home, or a full disk: then it is computed again
            make_cache_folder(_CACHE)
            write(kept, found)
    return found


def keep_prompt(config: Config, width: int, folder: Path) -> None:
    """Write what a model of this configuration is told next to weights of it, where `own_file` finds it.

    Args:
        width: D, of these weights.

    Raises:
        UserError: as `empty_prompt`.
        OSError: the disk refuses.
    """
    file = config.task_options.get("empty_prompt")
    found = empty_prompt(config.model.weights, width, file=file, seed=config.seed, downloads=False)
    write(folder / _OWN, found)


def own_file(weights: str) -> Path | None:
    """Of a weights' folder that brings the embedding in place of a text encoder: `empty_prompt.safetensors`."""
    file = weights_folder(weights) / _OWN
    return file if file.is_file() else None


def text_encoder_folder(weights: str, downloads: bool) -> Path:
    """The folder on this machine with the `text_encoder/` and `tokenizer/` of these weights. Raises as
    `empty_prompt`."""
    folder = Path(weights).expanduser()
    if not folder.exists():
        return _from_hub(weights, downloads)
    for one in (folder, folder.resolve().parent):
        if all((one / part).is_dir() for part in _PARTS):
            return one
    raise UserError(
        f"{weights}: no text_encoder/ and tokenizer/ here or next to it, so the empty prompt has no embedding; copy "
        "both from the pipeline, or give --set task_options.empty_prompt=FILE (safetensors, `empty_prompt`)"
    )


def _from_hub(name: str, downloads: bool) -> Path:
    from huggingface_hub import snapshot_download

    files = ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/*"]
    try:
        root = Path(snapshot_download(name, allow_patterns=files, local_files_only=not downloads))
    except Exception as error:  # the hub's client raises anything from OSError to ValueError
        reason = " ".join(str(error).split())[:160]
        raise MissingDependencyError(
            f"{name}: its text encoder cannot be had from the hub ({type(error).__name__}: {reason}); download "
            "text_encoder/ and tokenizer/ where there is network and give the folder with --weights DIR, or give --set "
            "task_options.empty_prompt=FILE (safetensors, `empty_prompt`)"
        ) from error
    if not all((root / part).is_dir() for part in _PARTS):
        raise MissingDependencyError(f"{name}: has no text_encoder/ and tokenizer/; give --weights another model")
    return root


def write(path: Path, embedding: Tensor) -> None:
    """Keep an embedding (N, D) as a file that `task_options.empty_prompt` takes. Raises OSError."""
    replace(path, save({_KEY: embedding.float().contiguous()}))
    path.chmod(0o600)


def computed(root: Path) -> Tensor:
    """By the text encoder of a pipeline's folder, (N, D) float32; as MarigoldIntrinsicsPipeline does: an empty text
    without padding, the last hidden states. Raises as `empty_prompt`."""
    with encoder_parts(root) as (tokenizer, encoder), torch.no_grad():
        tokens = tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
        embedding: Tensor = encoder(tokens)[0][0].float().clone()
    del encoder, tokenizer
    gc.collect()  # its modules refer to each other: it is gone before the UNet comes
    return embedding


@contextmanager
def encoder_parts(root: Path) -> Iterator[tuple[Any, Any]]:
    """Tokenizer and text encoder of a pipeline's folder, float32 on the CPU. What fails inside is reported as theirs.

    Raises:
        UserError: they do not load, or do not read what they are given.
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "the text encoder needs transformers, once: pip install transformers; or give --set "
            "task_options.empty_prompt=FILE (safetensors, `empty_prompt`)"
        ) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(root), subfolder="tokenizer", local_files_only=True)
        encoder: Any = CLIPTextModel.from_pretrained(
            str(root), subfolder="text_encoder", use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        yield tokenizer, encoder.eval()
    except UserError:
        raise
    except Exception as error:  # transformers raises anything from OSError to SafetensorError
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{root}: its text encoder does not load ({type(error).__name__}: {reason}); copy text_encoder/ and "
            "tokenizer/ again, or give --set task_options.empty_prompt=FILE (safetensors, `empty_prompt`)"
        ) from error


def encoder_digest(root: Path) -> str:
    """SHA-256 (hex) of the contents of text encoder and tokenizer. Raises OSError where they cannot be read."""
    digest = hashlib.sha256(b"empty prompt 1")
    for file in sorted(file for part in _PARTS for file in (root / part).iterdir() if file.is_file()):
        digest.update(f"{file.relative_to(root)} {sha256_of(file)} ".encode())
    return digest.hexdigest()


def _kept_path(root: Path) -> Path | None:
    """In this user's cache, named by the contents of text encoder and tokenizer; None where there is no such folder."""
    try:
        return cache_folder(_CACHE) / f"{encoder_digest(root)}.safetensors"
    except OSError:
        return None


def _read(path: Path, key: str) -> Tensor:
    where = one_line(str(path))
    try:
        tensors = load(read_bytes(path, limit=_MOST_BYTES))
    except (OSError, SafetensorError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "no safetensors"
        raise UserError(f"{where}: cannot be read ({reason}); write it again, or leave the option out") from error
    if key not in tensors:
        raise UserError(f"{where}: holds no tensor `{key}`, but {', '.join(sorted(tensors)) or 'none'}; name it so")
    return tensors[key]


def _fitting(embedding: Tensor, width: int, where: str) -> Tensor:
    """(N, D) float32; a batch of one counts as one."""
    found = embedding[0] if embedding.ndim == 3 and len(embedding) == 1 else embedding
    if found.ndim != 2 or not found.shape[0] or found.shape[1] != width or not found.is_floating_point():
        raise UserError(
            f"{where}: an embedding of the shape {tuple(embedding.shape)}; the model's cross-attention takes (tokens, "
            f"{width}): take text encoder and UNet of one model"
        )
    if not bool(found.isfinite().all()):
        raise UserError(f"{where}: the embedding holds values that are not finite; write it again")
    return found.float()
