"""A text encoder of two tokens that says one thing: the embedding of the empty prompt.

`MarigoldIntrinsicsPipeline` insists on a text encoder, and asks it for the empty prompt alone. CLIP's last layer
normalises each token over its width: of two tokens that are u and -u, with u of ones and minus ones in equal number,
it leaves u and -u, and its weight and bias make any two embeddings of them. No layer is needed in between.

Legend: N = 2 tokens, D width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diagnostics.files import replace_text
from shadowlab.errors import MissingDependencyError, UserError

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_SCALE = 1e3  # of u: next to its variance, the small number that the layer adds to it is nothing
_TOLERANCE = 1e-5


def write_empty_text_encoder(folder: Path, embedding: Tensor) -> None:
    """Write `text_encoder/` and `tokenizer/` for this embedding (2, D) of the empty prompt.

    Raises:
        UserError: it is not of two tokens of an even width.
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise MissingDependencyError(
            "--to diffusers: MarigoldIntrinsicsPipeline needs transformers: pip install transformers"
        ) from error
    if embedding.ndim != 2 or len(embedding) != 2 or embedding.shape[1] % 2:
        raise UserError(
            f"--to diffusers: an empty prompt of the shape {tuple(embedding.shape)}; the pipeline encodes it as two "
            "tokens of an even width. Take --to torch, or train with the embedding that it computes"
        )
    config = CLIPTextConfig(
        vocab_size=2,
        hidden_size=embedding.shape[1],
        intermediate_size=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        encoder: Any = CLIPTextModel(config).eval()
    _say(encoder, embedding)
    with torch.no_grad():
        found = encoder(torch.tensor([[0, 1]]))[0][0]
    if not torch.allclose(found, embedding, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise UserError("--to diffusers: this version of transformers encodes the empty prompt otherwise; take another")
    encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 2,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
    }
    for name, text in {
        "vocab.json": json.dumps({_BEGIN: 0, _END: 1}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps(settings, indent=1),
    }.items():
        replace_text(tokenizer / name, text)


@torch.no_grad()
def _say(encoder: Any, embedding: Tensor) -> None:
    signs = torch.ones(embedding.shape[1])
    signs[1::2] = -1
    named = dict(encoder.named_parameters())
    for name, value in {
        "token_embedding.weight": torch.stack([signs, -signs]) * _SCALE,
        "position_embedding.weight": torch.zeros(2, embedding.shape[1]),
        "final_layer_norm.weight": (embedding[0] - embedding[1]) / 2 * signs,
        "final_layer_norm.bias": (embedding[0] + embedding[1]) / 2,
    }.items():
        (parameter,) = (one for key, one in named.items() if key.endswith(name))
        parameter.copy_(value)
