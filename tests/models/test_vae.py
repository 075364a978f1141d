"""The frozen VAE: exact sizes, float32 whatever surrounds it, refusal of anything that is not whole."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from shadowlab.errors import MissingDependencyError, StageFailedError, UserError
from shadowlab.models.vae import (
    CONFIG_NAME,
    EMBEDDED_FOLDER,
    SDXL_CONFIG,
    WEIGHTS_NAME,
    ImageVae,
    load_vae,
    mask_to_latent,
    unwritten_vae,
)
from shadowlab.stages.train_vae.quality import measure_vae
from shadowlab.tasks.shadow.dataset import open_dataset

TINY = {**SDXL_CONFIG, "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2}


def tiny_autoencoder(**changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(**{**TINY, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_autoencoder().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    for name, tensor in changes.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS_NAME)


# --- the model ---------------------------------------------------------------------------------------------------


def test_sdxl_parameter_count() -> None:
    with torch.device("meta"):
        model: Any = AutoencoderKL(**SDXL_CONFIG)
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863


def test_random_is_sdxl() -> None:
    vae = load_vae("random")
    assert vae.num_parameters == 83_653_863
    assert vae.scaling_factor == 0.13025 and vae.shift_factor == 0.0
    assert vae.autoencoder.config.force_upcast and vae.autoencoder.config.sample_size == 1024


def test_random_is_seeded_and_leaves_the_global_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowlab.models.vae.SDXL_CONFIG", TINY)
    state = torch.get_rng_state()
    weights = [load_vae("random", seed=seed).autoencoder.decoder.conv_out.weight for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_frozen_in_eval_mode() -> None:
    vae = ImageVae(tiny_autoencoder().train())
    assert not vae.autoencoder.training
    assert not any(parameter.requires_grad for parameter in vae.autoencoder.parameters())


def test_gradients_reach_the_input_but_no_weight() -> None:
    vae = ImageVae(tiny_autoencoder())
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    vae.decode(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vae.autoencoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_under_autocast_and_for_half_inputs(dtype: torch.dtype) -> None:
    vae = ImageVae(tiny_autoencoder())
    shadow = torch.rand(2, 1, 32, 32).to(dtype)
    expected = vae.encode_grey(shadow.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode_grey(shadow)
        decoded = vae.decode(latents)
    assert latents.dtype == decoded.dtype == torch.float32
    assert torch.equal(latents, expected)
    assert torch.equal(decoded, vae.decode(expected))


def test_half_weights_are_brought_to_float32_and_later_conversion_is_caught() -> None:
    vae = ImageVae(tiny_autoencoder().half())
    assert vae.autoencoder.dtype == torch.float32
    vae.autoencoder.half()
    with pytest.raises(StageFailedError, match="VAE weights are torch.float16, expected float32"):
        vae.encode_grey(torch.zeros(1, 1, 16, 16))


def test_shapes_and_determinism() -> None:
    vae = ImageVae(tiny_autoencoder())
    shadow = torch.rand(2, 1, 32, 64)
    latents = vae.encode_grey(shadow)
    assert latents.shape == (2, 4, 4, 8)
    assert torch.equal(latents, vae.encode_grey(shadow))
    assert vae.decode(latents).shape == (2, 3, 32, 64)
    decoded = vae.decode_grey(latents)
    assert decoded.shape == (2, 1, 32, 64)
    assert 0.0 <= decoded.min() and decoded.max() <= 1.0


def test_encode_is_mode_minus_shift_times_scale_and_decode_undoes_it() -> None:
    model = tiny_autoencoder(shift_factor=0.5)
    vae = ImageVae(model)
    shadow = torch.rand(1, 1, 16, 16)
    mode = model.encode(shadow.expand(-1, 3, -1, -1) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(vae.encode_grey(shadow), (mode - 0.5) * 0.13025)
    picture = model.decode(mode).sample
    torch.testing.assert_close(vae.decode(vae.encode_grey(shadow)), picture)
    torch.testing.assert_close(vae.decode_grey(vae.encode_grey(shadow)), ((picture[:, :1] + 1) / 2).clamp(0.0, 1.0))


def test_large_batches_go_through_in_pieces_with_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = ImageVae(tiny_autoencoder())
    shadow = torch.rand(5, 1, 16, 16)
    whole = vae.encode_grey(shadow)
    monkeypatch.setattr("shadowlab.models.vae._MAX_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(vae.encode_grey(shadow), whole)
    torch.testing.assert_close(vae.decode(whole), torch.cat([vae.decode(whole[:3]), vae.decode(whole[3:])]))


def test_mask_to_latent_keeps_thin_parts() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3] = 1.0
    expected = torch.tensor([[1 / 8, 0.0], [1 / 8, 0.0]])
    torch.testing.assert_close(mask_to_latent(mask)[0, 0], expected)
    with pytest.raises(UserError, match="multiples of 8"):
        mask_to_latent(torch.zeros(1, 1, 12, 16))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(1, 1, 16, 16), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 12, 16), "multiples of 8"),
        (torch.full((1, 3, 16, 16), 255.0), r"finite and in \[-1, 1\]"),
        (torch.full((1, 3, 16, 16), torch.nan), r"finite and in \[-1, 1\]"),
    ],
)
def test_wrong_pictures(images: torch.Tensor, text: str) -> None:
    with pytest.raises(UserError, match=text):
        ImageVae(tiny_autoencoder()).encode(images)


def test_wrong_shadows_and_latents() -> None:
    vae = ImageVae(tiny_autoencoder())
    with pytest.raises(UserError, match=r"grey maps \(1, 3, 16, 16\): expected \(B, 1, H, W\)"):
        vae.encode_grey(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match=r"latents \(1, 9, 2, 2\): expected \(B, 4, h, w\)"):
        vae.decode(torch.zeros(1, 9, 2, 2))


# --- loading -----------------------------------------------------------------------------------------------------


def test_folder_and_pipeline_folder_give_the_same_vae(folder: Path) -> None:
    expected = tiny_autoencoder().decoder.conv_out.weight
    (folder.parent / "pipeline").mkdir()
    folder.rename(folder.parent / "pipeline" / "vae")
    for source in (folder.parent / "pipeline", folder.parent / "pipeline" / "vae"):
        assert torch.equal(load_vae(str(source)).autoencoder.decoder.conv_out.weight, expected)


def test_half_precision_file_is_loaded_as_float32(folder: Path) -> None:
    tiny_autoencoder().half().save_pretrained(folder)
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS_NAME).values()} == {torch.float16}
    assert {parameter.dtype for parameter in load_vae(str(folder)).autoencoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_absent_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickle is never read")
    with pytest.raises(UserError, match=f"{name}: no such file; a VAE folder needs"):
        load_vae(str(folder))


@pytest.mark.parametrize("kept", [0, 4, 1000, -100])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{WEIGHTS_NAME}: truncated or no safetensors .*; copy it again"):
        load_vae(str(folder))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latent_channels": 16}, "latent_channels is 16, expected 4"),
        ({"in_channels": 1}, "in_channels is 1, expected 3"),
        ({"block_out_channels": [4, 4]}, "expected 4 entries: latents 8 times smaller"),
        ({"scaling_factor": None}, "scaling_factor is None, expected a positive number"),
        ({"shift_factor": "half"}, "shift_factor is half, expected a number or null"),
        ({"latents_std": [1.0] * 4}, "latents_std is set, which is not supported"),
    ],
)
def test_configuration_that_does_not_suit(folder: Path, changes: dict[str, Any], text: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match=text) as caught:
        load_vae(str(folder))
    assert CONFIG_NAME in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_configuration_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(UserError, match=f"{CONFIG_NAME}: .*JSON.*copy it again"):
        load_vae(str(folder))


@pytest.mark.parametrize("changes", [{"layers_per_block": 2}, {"block_out_channels": [4, 4, 4, 8]}])
def test_weights_of_another_model(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match=f"{WEIGHTS_NAME}: .*from one model") as caught:
        load_vae(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"norm_num_groups": groups} for groups in (0, -2, 3, "x", 1.0, True, 2**70)),
        *({"block_out_channels": [n] * 4} for n in (0, -1, "x", 2**40)),
        {"layers_per_block": 0},
    ],
)
@pytest.mark.parametrize("use", [load_vae, unwritten_vae])
def test_sizes_that_no_vae_has_are_one_line(folder: Path, changes: dict[str, Any], use: Any) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError, match=f"{CONFIG_NAME}: .*(norm_num_groups|block_out_channels)") as caught:
        use(str(folder))
    assert "\n" not in str(caught.value)


def test_missing_unexpected_and_non_finite_tensors(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "decoder.conv_in.bias"
    bias = load_file(folder / WEIGHTS_NAME)[name]
    change_weights(folder, **{name: bias / 0.0})
    with pytest.raises(UserError, match=f"{WEIGHTS_NAME}: tensor {name} holds values that are not finite"):
        load_vae(str(folder))
    change_weights(folder, **{name: None})
    with pytest.raises(UserError, match=f"{WEIGHTS_NAME}: 1 missing keys, first {name}; copy weights and"):
        load_vae(str(folder))
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({**tensors, name: bias, "extra": bias + 1}, folder / WEIGHTS_NAME)
    with pytest.raises(UserError, match="1 unexpected keys, first extra; copy weights and"):
        load_vae(str(folder))
    assert capfd.readouterr().err == ""  # one line is one line: no library warning next to it


@pytest.mark.parametrize("source", ["", "/no/such/folder", "embeded"])
def test_no_such_source(source: str) -> None:
    with pytest.raises(UserError, match="no such folder; give embedded, embedded-albedo, random, a folder or a hub id"):
        load_vae(source)


def test_a_file_is_no_vae(folder: Path) -> None:
    with pytest.raises(UserError, match="give the folder"):
        load_vae(str(folder / WEIGHTS_NAME))


def test_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match="offline, or no such model.*give that folder") as caught:
        load_vae("stabilityai/no-such-vae")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


# --- the shipped VAE ---------------------------------------------------------------------------------------------


def test_shipped_vae_is_small() -> None:
    assert (EMBEDDED_FOLDER / WEIGHTS_NAME).stat().st_size < 2 * 1024 * 1024
    assert load_vae("embedded").num_parameters < 524_288


def test_shipped_vae_on_the_shipped_renders() -> None:
    """None of these objects was in its training data, which was rendered with another seed."""
    dataset = open_dataset("embedded", 128)
    quality = measure_vae(load_vae("embedded"), dataset, range(0, len(dataset), 3))
    assert quality.shadow_psnr_db >= 30.0
    assert quality.shadow_soft_iou >= 0.86
    assert quality.noisy_shadow_soft_iou >= 0.85
    assert quality.background_error <= 0.002
    assert quality.object_psnr_db >= 24.0
    assert 0.8 <= quality.latent_std <= 1.25
    assert quality.latent_abs_max <= 8.0
