"""AutoencoderTiny: latents that are scaled already, from the same places as any other VAE, through every stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from shadowlab.errors import UserError
from shadowlab.models.autoencoders import SDXL_CONFIG, TINY_CONFIG
from shadowlab.models.vae import CONFIG_NAME, ImageVae, load_vae, unwritten_vae
from shadowlab.settings.files import load_config
from tests import runs

SMALL = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}


def small(**changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoencoderTiny(**{**TINY_CONFIG, **SMALL, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "taesd"
    small().save_pretrained(folder)
    return folder


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy with another configuration."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / CONFIG_NAME).read_text())
    (target / CONFIG_NAME).write_text(json.dumps({**config, **changes}))
    return target


def test_the_standard_one_has_its_published_size() -> None:
    with torch.device("meta"):
        model: Any = AutoencoderTiny(**TINY_CONFIG)
        usual: Any = AutoencoderKL(**SDXL_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == 2_445_063
    assert sum(p.numel() for p in usual.parameters()) == 83_653_863
    assert unwritten_vae("random-tiny").num_parameters == 2_445_063


def test_latents_are_scaled_once_and_pictures_are_in_minus_1_to_1(folder: Path) -> None:
    """The same numbers as the class itself gives; twice scaled, they are noise."""
    vae, model = load_vae(str(folder)), small().eval()
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = vae.encode(images)
    with torch.no_grad():
        torch.testing.assert_close(latents, model.encode(images).latents, rtol=0, atol=0)
        torch.testing.assert_close(vae.decode(latents), model.decode(latents).sample, rtol=0, atol=0)
    assert (latents.shape, vae.scaling_factor, vae.shift_factor) == ((2, 4, 4, 6), 1.0, 0.0)
    with pytest.raises(UserError, match=r"in \[-1, 1\]"):
        vae.encode(images * 2)


def test_it_is_frozen_in_float32_whatever_surrounds_it(folder: Path) -> None:
    vae = ImageVae(small().half())
    assert not any(p.requires_grad for p in vae.autoencoder.parameters())
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode(images.bfloat16())
    assert latents.dtype is torch.float32 and vae.decode(latents).dtype is torch.float32


def test_random_is_seeded_and_of_the_standard_size() -> None:
    one, same, other = (load_vae("random-tiny", seed=seed) for seed in (0, 0, 1))
    assert one.num_parameters == 2_445_063
    assert one.encoder_digest() == same.encoder_digest() != other.encoder_digest()
    assert one.encoder_digest() != load_vae("embedded").encoder_digest()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scaling_factor": 0.18215}, "scaling_factor is 0.18215, and the latents of an AutoencoderTiny are scaled"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1"),
        ({"latent_channels": 16}, "latent_channels is 16, expected 4"),
        ({"encoder_block_out_channels": [8, 8, 8]}, "encoder_block_out_channels is .* 8 times smaller"),
        ({"decoder_block_out_channels": [8, 8, 8, 0]}, "expected positive numbers"),
        ({"num_encoder_blocks": [1, 1, 1]}, "num_encoder_blocks is .*, expected 4 positive numbers"),
        ({"num_decoder_blocks": [1, 1, 1, 10**9]}, "num_decoder_blocks is .*, expected 4 positive numbers"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor is 4"),
    ],
)
def test_a_configuration_that_does_not_suit_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    place = str(changed(folder, tmp_path / "other", **changes))
    for use in (load_vae, unwritten_vae):
        with pytest.raises(UserError, match=text):
            use(place)


def test_a_folder_of_one_class_with_the_weights_of_the_other_is_refused(folder: Path, tmp_path: Path) -> None:
    config = {**SDXL_CONFIG, "block_out_channels": [4, 4, 4, 4], "norm_num_groups": 2, "_class_name": "AutoencoderKL"}
    place = changed(folder, tmp_path / "other")
    (place / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(UserError, match="copy (both|weights and config.json) from one model"):
        load_vae(str(place))


def test_only_nobodys_weights_are_random() -> None:
    for source, wanted in {"random": True, "random-tiny": True, "embedded": False, "same": True}.items():
        assert load_config(assignments=[f"model.vae={source}"]).model.vae_is_random is wanted


def test_a_run_with_it_trains_and_is_judged(stage_folder: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    words = runs.command({**stage_folder, "vae": folder}, tmp_path, "run", 2, "train.validate_every=1")
    runs.run_here(words)
    judged = [record for record in runs.records(tmp_path / "run") if record["kind"] == "validation"]
    assert judged and judged[-1]["step"] == 2 and judged[-1]["loss"] > 0
