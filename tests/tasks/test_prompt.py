"""The empty prompt: by a real text encoder, once; kept, checked, and never next to what trains."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.settings import load_config
from shadowlab.tasks import prompt
from shadowlab.tasks.prompt_check import prompt_is_right
from tests.tasks.pipeline import make_pipeline

transformers = pytest.importorskip("transformers")
WIDTH = 16


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return make_pipeline(tmp_path / "pipeline", WIDTH)


def told_by(root: Path) -> torch.Tensor:
    """By the encoder's own layers, given the two tokens of an empty text."""
    encoder = transformers.CLIPTextModel.from_pretrained(root / "text_encoder").eval()
    with torch.no_grad():
        found: torch.Tensor = encoder(torch.tensor([[0, 1]])).last_hidden_state[0]
    return found


def read(root: Path | str, width: int = WIDTH, file: Path | None = None, seed: int = 0) -> torch.Tensor:
    return prompt.empty_prompt(str(root), width, file=None if file is None else str(file), seed=seed, downloads=False)


def test_it_is_computed_once_by_the_text_encoder_next_to_the_weights(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(pipeline)
    assert found.shape == (2, WIDTH) and torch.allclose(found, told_by(pipeline), atol=1e-5)
    monkeypatch.setattr(prompt, "computed", lambda root: pytest.fail("computed again"))
    assert torch.equal(read(pipeline), found) and torch.equal(read(pipeline / "unet"), found)


def test_another_text_encoder_has_another_embedding(pipeline: Path) -> None:
    before = read(pipeline)
    model = transformers.CLIPTextModel.from_pretrained(pipeline / "text_encoder")
    with torch.no_grad():
        model.text_model.final_layer_norm.bias.add_(1.0) if hasattr(model, "text_model") else None
        for name, parameter in model.named_parameters():
            if name.endswith("final_layer_norm.weight"):
                parameter.mul_(2.0)
    model.save_pretrained(pipeline / "text_encoder")
    after = read(pipeline)
    assert not torch.allclose(before, after, atol=1e-2) and torch.allclose(after, told_by(pipeline), atol=1e-5)


def test_a_damaged_cache_is_computed_again(pipeline: Path, tmp_path: Path) -> None:
    found = read(pipeline)
    kept = next((tmp_path / "cache").rglob("*.safetensors"))
    kept.write_bytes(b"nonsense")
    kept.chmod(0o600)
    assert torch.equal(read(pipeline), found)


def test_random_weights_are_told_random_numbers_of_the_seed() -> None:
    assert torch.equal(read("random"), read("random")) and not torch.equal(read("random"), read("random", seed=1))
    assert read("random", 64).shape == (prompt.NUM_TOKENS, 64)


def test_a_file_in_place_of_the_encoder(tmp_path: Path) -> None:
    embedding = torch.randn(3, WIDTH)
    prompt.write(tmp_path / "own.safetensors", embedding)
    assert torch.equal(read("somewhere", file=tmp_path / "own.safetensors"), embedding)
    save_file({"empty_prompt": embedding[None]}, tmp_path / "batch.safetensors")
    assert torch.equal(read("somewhere", file=tmp_path / "batch.safetensors"), embedding)
    wrong = {"a": {"prompt": embedding}, "b": {"empty_prompt": embedding.T.contiguous()}}
    wrong["c"] = {"empty_prompt": torch.full((2, WIDTH), torch.nan)}
    for name, tensors in wrong.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            read("somewhere", file=tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read("somewhere", file=tmp_path / "none.safetensors")


def test_what_is_missing_is_one_line_with_the_fix(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"cross-attention takes \(tokens, 32\)"):
        read(pipeline, 32)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no text_encoder/ and tokenizer/ .*task_options\.empty_prompt"):
        read(tmp_path / "bare")
    with pytest.raises(MissingDependencyError, match="cannot be had from the hub"):
        read("nobody/nothing")
    (pipeline / "text_encoder" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="does not load"):
        read(pipeline)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="needs transformers, once"):
        read(pipeline)


def test_check_forward_asks_the_text_encoder_again(pipeline: Path) -> None:
    config = load_config(preset="albedo-tiny", options={"model.weights": str(pipeline)})
    right = read(pipeline).expand(2, -1, -1)
    assert prompt_is_right(right, config, None).passed
    swapped, longer = right.flip(1), torch.cat([right, right], dim=1)
    for wrong in (right + 0.01, swapped, longer, torch.stack([right[0], right[1] + 1])):
        assert not prompt_is_right(wrong, config, None).passed
