"""Surgery and loading: what is kept, what is new, what is refused. A wrong UNet trains happily; only this shows it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file
from torch import Tensor

from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.models.precision import POLICIES
from shadowlab.models.surgery import cross_attention_modules, remove_cross_attention, widen_conv_in
from shadowlab.models.unet import architecture_config, load_unet
from shadowlab.seeding import normal
from shadowlab.settings import Config
from shadowlab.stages.check_forward.structure_checks import new_channels
from shadowlab.tasks.shadow.task import ShadowTask
from tests import tiny

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def random_unet(architecture: str = "tiny", seed: int = 0) -> Any:
    return load_unet("random", architecture, ShadowTask.spec, seed=seed)


def predicted(unet: Any, batch: Any = None, t: float = 0.3) -> Tensor:
    batch = batch or tiny.encoded_batch([0, 1])
    with torch.no_grad():
        return tiny.predicted(unet.eval(), batch, torch.full((2,), t))


# --- random weights ----------------------------------------------------------------------------------------------


def test_sdxl_has_exactly_the_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of `--preset sdxl --weights random`, except that nothing is allocated."""
    monkeypatch.setattr(UNet2DConditionModel, "to_empty", lambda self, device: self)
    with torch.device("meta"):
        unet = random_unet("sdxl")
    tensors = list(unet.parameters())
    assert (sum(p.numel() for p in tensors), len(tensors)) == (2_019_019_844, 1_190)
    assert sum(isinstance(m, BasicTransformerBlock) for m in unet.modules()) == 70
    assert unet.conv_in.in_channels == unet.config.in_channels == 9
    assert unet.class_embedding.linear_1.in_features == 768


def test_sdxls_configuration_is_the_hubs() -> None:
    config = architecture_config("sdxl")
    assert config["block_out_channels"] == [320, 640, 1280]
    assert config["transformer_layers_per_block"] == [1, 2, 10]
    assert config["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert config["in_channels"] == 4


def test_tiny_is_sdxl_in_small() -> None:
    """Same blocks, same embeddings, same switches: what is proved on one holds for the other."""
    tiny_config, sdxl = architecture_config("tiny"), architecture_config("sdxl")
    sizes = {
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "layers_per_block",
        "transformer_layers_per_block",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "sample_size",
    }
    assert {key for key in sdxl if sdxl[key] != tiny_config.get(key)} <= sizes


def test_random_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = random_unet(), random_unet(), random_unet(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.conv_out.weight, other.conv_out.weight)


def test_random_weights_leave_no_memory_uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is written after allocation: poisoned memory must not show."""
    original = UNet2DConditionModel.to_empty

    def poisoned(self: Any, *, device: str) -> Any:
        unet = original(self, device=device)
        for tensor in [*unet.parameters(), *unet.buffers()]:
            tensor.data.fill_(float("nan"))
        return unet

    monkeypatch.setattr(UNet2DConditionModel, "to_empty", poisoned)
    unet = random_unet()
    assert not [name for name, tensor in unet.state_dict().items() if not tensor.isfinite().all()]
    assert predicted(unet).isfinite().all()


def test_all_is_trainable_float32() -> None:
    unet = random_unet()
    assert unet.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in unet.parameters())


# --- weights from the hub's layout -------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "unet"])
def test_hub_weights_are_kept(tmp_path: Path, inner: str) -> None:
    """A bare folder and a whole pipeline's folder."""
    tiny.save_hub_unet(tmp_path / inner)
    unet, base = tiny.shadow_unet(tmp_path), tiny.hub_unet().state_dict()
    own = unet.state_dict()
    assert torch.equal(own.pop("conv_in.weight")[:, :4], base.pop("conv_in.weight"))
    assert torch.equal(unet.conv_in.weight[:, 4:], torch.zeros_like(unet.conv_in.weight[:, 4:]))
    new = {name for name in own if name not in base}
    assert new == {f"class_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert all(torch.equal(own[name], base[name]) for name in own if name not in new)
    gone = {name for name in base if name not in own}
    assert all("attn2" in name or "transformer_blocks" in name or "add_embedding" in name for name in gone)
    assert not any("attn1" in name or "norm1" in name or "norm3" in name for name in gone)


def test_output_is_the_base_models_without_cross_attention(hub_folder: Path) -> None:
    """Whatever the new channels hold: the object and the mask do not disturb at the start."""
    unet, base = tiny.shadow_unet(hub_folder), tiny.hub_unet()
    remove_cross_attention(base)
    base.register_to_config(addition_embed_type=None)
    torch.nn.init.zeros_(unet.class_embedding.linear_2.weight)
    torch.nn.init.zeros_(unet.class_embedding.linear_2.bias)
    batch = tiny.encoded_batch([0, 1])
    with torch.no_grad():
        wanted = base(batch.data, torch.full((2,), 700.0), None).sample
    torch.testing.assert_close(predicted(unet, batch), wanted, rtol=0, atol=1e-6)


def test_cross_attention_is_gone(hub_folder: Path) -> None:
    assert len(cross_attention_modules(tiny.hub_unet())) > 0
    unet = tiny.shadow_unet(hub_folder)
    assert cross_attention_modules(unet) == []
    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    assert blocks
    assert all(block.attn2 is None and block.norm2 is None for block in blocks)


def test_light_and_time_are_added(hub_folder: Path) -> None:
    """The light goes through class_embedding and joins the time embedding, nothing else."""
    unet = tiny.shadow_unet(hub_folder)
    batch = tiny.encoded_batch([0, 1])
    seen: dict[str, Tensor] = {}
    unet.time_embedding.register_forward_hook(lambda m, i, o: seen.update(time=o))
    unet.class_embedding.register_forward_hook(lambda m, i, o: seen.update(light=o))
    unet.mid_block.resnets[0].register_forward_pre_hook(lambda m, i: seen.update(joined=i[1]))
    predicted(unet, batch)
    torch.testing.assert_close(seen["joined"], seen["time"] + seen["light"], rtol=0, atol=1e-6)


def test_our_own_weights_come_back_exactly(hub_folder: Path, tmp_path: Path) -> None:
    unet = tiny.shadow_unet(hub_folder)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.01)
    unet.save_pretrained(tmp_path / "unet")
    again = tiny.shadow_unet(tmp_path / "unet")
    assert set(again.state_dict()) == set(unet.state_dict())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(predicted(again), predicted(unet))


def test_home_folder_is_understood(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(hub_folder.parent))
    tiny.shadow_unet(Path(f"~/{hub_folder.name}"))


# --- refusals ----------------------------------------------------------------------------------------------------


def refused(weights: Path | str, **arguments: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        tiny.shadow_unet(weights, **arguments)
    assert "\n" not in str(caught.value)
    assert str(weights) in str(caught.value) or arguments
    return caught.value


def change_weights(folder: Path, name: str, tensor: Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


def test_no_configuration(tmp_path: Path) -> None:
    assert "no config.json here or in unet/" in str(refused(tmp_path))


@pytest.mark.parametrize("name", ["./absent", "/absent", "~/absent", "absent", "a/b/c"])
def test_neither_folder_nor_hub_id(name: str) -> None:
    error = refused(name)
    assert "no such folder, and not a hub id" in str(error)
    assert error.exit_code == 2


def test_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refused("nobody/nothing")
    assert isinstance(error, MissingDependencyError)
    assert error.exit_code == 3
    assert "--weights DIR" in str(error)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    tiny.save_hub_unet(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    assert "not loadable as a UNet" in str(refused(tmp_path))


def test_absent_weights(tmp_path: Path) -> None:
    tiny.save_hub_unet(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    assert "not loadable as a UNet" in str(refused(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    tiny.save_hub_unet(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS_FILE), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / WEIGHTS_FILE).unlink()
    assert "not loadable as a UNet" in str(refused(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_damaged_configuration(tmp_path: Path, text: str) -> None:
    tiny.save_hub_unet(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_failed_run(tmp_path: Path, value: float) -> None:
    tiny.save_hub_unet(tmp_path)
    bias = torch.zeros(4)
    bias[2] = value
    change_weights(tmp_path, "conv_out.bias", bias)
    assert "conv_out.bias holds non-finite values" in str(refused(tmp_path))


def test_dropout_is_refused(tmp_path: Path) -> None:
    """It would draw from the global generator, and no step could be repeated."""
    tiny.save_hub_unet(tmp_path, dropout=0.1)
    assert "config.json has dropout 0.1" in str(refused(tmp_path))


def test_a_missing_tensor_is_not_made_up(tmp_path: Path) -> None:
    tiny.save_hub_unet(tmp_path)
    change_weights(tmp_path, "mid_block.resnets.0.conv1.weight", None)
    assert "mid_block.resnets.0.conv1.weight" in str(refused(tmp_path))


def test_weights_of_another_width(tmp_path: Path) -> None:
    tiny.save_hub_unet(tmp_path)
    change_weights(tmp_path, "conv_out.weight", torch.zeros(4, 99, 3, 3))
    assert "conv_out.weight" in str(refused(tmp_path))


def test_more_tensors_than_the_configuration_has(tmp_path: Path) -> None:
    """config.json of a smaller model next to the weights of a larger one."""
    tiny.save_hub_unet(tmp_path, transformer_layers_per_block=(1, 2))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "transformer_layers_per_block": [1, 1]}))
    assert "do not fit config.json" in str(refused(tmp_path))


def test_another_embedding_width(hub_folder: Path, tmp_path: Path) -> None:
    tiny.shadow_unet(hub_folder).save_pretrained(tmp_path / "own")
    error = refused(tmp_path / "own", embedding_dim=64)
    assert "768" in str(error)
    assert "64" in str(error)


# --- widening ----------------------------------------------------------------------------------------------------


def test_repeated_channels_are_halved(hub_folder: Path) -> None:
    """Marigold's rule: equal halves give the old output; without the halving it would double."""
    unet, base = tiny.shadow_unet(hub_folder, in_channels=8, widening="repeat"), tiny.hub_unet()
    x = normal((1, 4, 6, 6), 0, "x")
    assert torch.equal(unet.conv_in.weight, base.conv_in.weight.repeat(1, 2, 1, 1) / 2)
    assert torch.equal(unet.conv_in.bias, base.conv_in.bias)
    torch.testing.assert_close(unet.conv_in(torch.cat([x, x], dim=1)), base.conv_in(x))
    assert unet.config.in_channels == 8


def test_copies_that_are_not_the_same_are_seen(hub_folder: Path) -> None:
    """What check-forward says of the rule `repeat`."""
    unet = tiny.shadow_unet(hub_folder, in_channels=8, widening="repeat")
    spec = replace(ShadowTask.spec, in_channels=8, widening="repeat")
    assert new_channels(unet, spec, Config()).passed
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] *= 1.1
    assert not new_channels(unet, spec, Config()).passed


@pytest.mark.parametrize(("channels", "rule"), [(3, "zero"), (9, "repeat")])
def test_widening_that_cannot_be(channels: int, rule: Any) -> None:
    with pytest.raises(UserError, match=rf"conv_in of 4 channels cannot be widened to {channels} by rule `{rule}`"):
        widen_conv_in(tiny.hub_unet(), channels, rule)


# --- what the UNet is fed ----------------------------------------------------------------------------------------


def test_timestep_is_a_thousand_times_one_minus_t_in_float32(hub_folder: Path) -> None:
    """Unscaled, or rounded to a half type, t would look like almost pure data at every step."""
    unet = tiny.shadow_unet(hub_folder).eval()
    POLICIES["fp16-pure"].prepare(unet)
    seen: list[Tensor] = []
    unet.time_proj.register_forward_hook(lambda m, inputs, o: seen.extend([inputs[0], o]))
    batch = tiny.encoded_batch([0, 1, 2])
    t = torch.tensor([0.0, 0.3333, 0.999])
    with torch.no_grad():
        out = tiny.predicted(unet, batch, t)
    timesteps, sinusoids = seen
    assert timesteps.dtype == sinusoids.dtype == torch.float32
    assert torch.equal(timesteps, 1000.0 * (1.0 - t))
    assert out.dtype == torch.float32


def test_channels_are_noisy_latent_then_conditions(hub_folder: Path) -> None:
    unet = tiny.shadow_unet(hub_folder).eval()
    seen: list[Tensor] = []
    unet.conv_in.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    batch = tiny.encoded_batch([0, 1])
    predicted(unet, batch)
    assert torch.equal(seen[0][:, :4], batch.data)
    assert torch.equal(seen[0][:, 4:], batch.conditions.concatenated)
