"""A pipeline's folder in small: a text encoder of two layers, and a tokenizer that knows two words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def make_pipeline(root: Path, width: int, seed: int = 0) -> Path:
    """`text_encoder/` with embeddings (N, width), `tokenizer/`, and an empty `unet/`."""
    transformers: Any = pytest.importorskip("transformers")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    (root / "tokenizer").mkdir(parents=True)
    (root / "unet").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (root / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    config = transformers.CLIPTextConfig(
        vocab_size=4, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    torch.manual_seed(seed)
    transformers.CLIPTextModel(config).save_pretrained(root / "text_encoder")
    return root
