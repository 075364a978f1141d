"""check-forward against sabotage: one test per fault that a real user could have, each found and named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shadowlab.checks import PathTable
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models.flow import RectifiedFlow
from shadowlab.models.unet import load_unet
from shadowlab.models.vae import ImageVae, load_vae
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings.files import load_config
from shadowlab.settings.schema import Config
from shadowlab.stages.check_forward import check_forward, model_checks
from shadowlab.stages.check_forward.check_forward import run_check_forward
from shadowlab.stages.check_forward.structure_checks import structure
from shadowlab.stages.result import StageResult
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow import checks as shadow_checks
from shadowlab.tasks.shadow import task as shadow_task
from shadowlab.tasks.shadow.samples import Batch, collate
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training import step
from tests import tiny

Change = Callable[[Any], None]
PATH = "shapes, dtypes and ranges along the path"


@pytest.fixture
def config(stage_folder: dict[str, Path], tmp_path: Path) -> Config:
    return tiny.stage_config(stage_folder, tmp_path)


def checked(config: Config, **arguments: Any) -> StageResult:
    run = RunFolder.create(config, f"check-{len(list(Path(config.output_dir).glob('*')))}")
    return run_check_forward(
        Session.open(config, run, SingleProcess(torch.device("cpu")), Reporter(active=False)), **arguments
    )


def failed(result: StageResult) -> dict[str, dict[str, Any]]:
    """Failed checks by name; each must be in the message, too. The VAE here is untrained: that one always fails."""
    found = {check["name"]: check for check in result.summary["checks"] if not check["passed"]}
    for name, check in found.items():
        assert (
            check["tolerated"]
            or f"{name}: expected {check['expected']}, saw {check['seen']}; {check['mend']}" in result.message
        )
    assert not result.passed
    return {name: check for name, check in found.items() if name != "VAE gives the shadow map back"}


def build_with(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Sabotage the UNet right after it is built."""
    original = check_forward.build_unet

    def build(*arguments: Any) -> Any:
        unet = original(*arguments)
        with torch.no_grad():
            change(unet)
        return unet

    monkeypatch.setattr(check_forward, "build_unet", build)


def test_a_sound_model_passes_every_check(config: Config) -> None:
    result = checked(config)
    assert failed(result) == {}
    path = {row["tensor"]: row for row in result.summary["path"]}
    assert path["input [x_t, object, mask]"]["shape"] == [2, 9, tiny.SIDE, tiny.SIDE]
    assert path["light embedding"]["shape"] == [2, 768]
    assert all(row["finite"] and row["in_range"] for row in path.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp16-pure"])
def test_a_sound_model_passes_in_other_precisions(
    stage_folder: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, f"precision={precision}", "allow_unsafe=true")
    foreseen = {"the optimizer's eps is not zero"} if precision == "fp16-pure" else set()
    result = checked(config)
    assert set(failed(result)) == foreseen
    assert all(check["tolerated"] for check in failed(result).values())


def test_an_untrained_vae_is_reported(config: Config) -> None:
    """So that nobody trains on latents that cannot become pictures again."""
    assert "VAE gives the shadow map back" in checked(config).message


def test_light_without_effect(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real fault of the first code of this family: the conditioning was computed and never used."""
    build_with(monkeypatch, lambda unet: [p.zero_() for p in unet.class_embedding.parameters()])
    names = failed(checked(config))
    assert {f"output and gradient answer to {name}" for name in ("theta", "phi", "size")} <= set(names)


def test_one_of_the_three_without_effect(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, lambda unet: unet.class_embedding.linear_1.weight[:, 256:512].zero_())
    assert set(failed(checked(config))) == {"output and gradient answer to phi"}


class _Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return self.inner(x, *arguments, **named).detach()


def test_a_detached_module_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(unet: Any) -> None:
        unet.time_embedding = _Detached(unet.time_embedding)

    build_with(monkeypatch, cut)
    check = failed(checked(config))["gradients reach every trainable tensor"]
    assert "time_embedding.inner.linear_1.weight" in check["seen"]


def test_dead_weights_are_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that arrives as exact zero does not train either."""
    build_with(monkeypatch, lambda unet: unet.mid_block.resnets[0].conv2.weight.zero_())
    check = failed(checked(config))["gradients reach every trainable tensor"]
    assert "mid_block.resnets.0.conv1.weight" in check["seen"]


def test_bad_weights_are_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, lambda unet: unet.mid_block.resnets[0].conv1.weight[0].fill_(float("nan")))
    names = failed(checked(config))
    assert "first mid_block.resnets.0.conv1" in names["forward is finite in fp32"]["seen"]
    assert "gradients are finite in fp32" in names


def test_activations_beyond_float16(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine in float32, infinite in float16; the check names the layer and the type's limit."""
    build_with(monkeypatch, lambda unet: unet.mid_block.resnets[0].conv1.weight.mul_(1e6))  # a norm follows
    assert failed(checked(tiny.stage_config(stage_folder, tmp_path))) == {}
    check = failed(checked(tiny.stage_config(stage_folder, tmp_path, "precision=fp16")))["forward is finite in fp16"]
    assert "first mid_block.resnets.0.conv1" in check["seen"]
    assert "6.55e+04" in check["seen"]


def test_a_model_that_says_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """conv_out at zero, as zero-initialised checkpoints have it: a failed check, not a division by zero."""
    build_with(monkeypatch, lambda unet: [p.zero_() for p in unet.conv_out.parameters()])
    assert "output and gradient answer to phi" in failed(checked(config))


def test_cross_attention_left_in(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def put_back(unet: Any) -> None:
        block = unet.mid_block.attentions[0].transformer_blocks[0]
        block.attn2 = nn.Identity()
        block.forward = lambda hidden_states, **_: hidden_states

    build_with(monkeypatch, put_back)
    assert "mid_block.attentions.0" in failed(checked(config))["no cross-attention left"]["seen"]


def test_new_channels_that_disturb(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_with(monkeypatch, lambda unet: unet.conv_in.weight[:, 4:].fill_(0.1))
    config = tiny.stage_config(stage_folder, tmp_path, "model.weights=random")
    assert "conv_in ignores the new channels at init" in failed(checked(config))


def test_the_shadow_leaks_into_the_input(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object image that was not composited with its mask shows the shadow: the answer."""

    def leaky(samples: Any) -> Batch:
        batch = collate(samples)
        return replace(batch, object_image=batch.object_image + 0.5 * batch.shadow * (1 - batch.mask))

    monkeypatch.setattr(shadow_task, "collate", leaky)
    assert set(failed(checked(config))) == {"background of the object image is constant"}


def test_pictures_in_the_wrong_range(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def dark(samples: Any) -> Batch:
        batch = collate(samples)
        return replace(batch, mask=batch.mask * 255)

    monkeypatch.setattr(shadow_task, "collate", dark)
    assert "mask in [0, 255]" in failed(checked(config))[PATH]["seen"]


def test_a_reversed_flow(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper and this code name the ends differently; half of the readers swap them once. What is judged is what the
    loss compares with."""
    monkeypatch.setattr(RectifiedFlow, "target", lambda self, noise, data, t: noise - data)
    names = {"the true velocity leads from noise to data", "the training loss is the flow's"}
    assert set(failed(checked(config))) == names


def test_a_reversed_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen twice: in the formula, and from what the model really gets in the training step."""
    original = RectifiedFlow.noised
    monkeypatch.setattr(RectifiedFlow, "noised", lambda self, noise, data, t: original(self, data, noise, t))
    names = {"the true velocity leads from noise to data", "timesteps are 1000 (1 - t)"}
    assert set(failed(checked(config))) == names


def test_a_reversed_target_of_the_training_loss(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas of flow.py are right and the loss uses them wrongly."""
    original = RectifiedFlow.loss
    monkeypatch.setattr(RectifiedFlow, "loss", lambda self, one, noise, data, t: original(self, one, data, noise, t))
    assert set(failed(checked(config))) == {"the training loss is the flow's"}


def test_noise_and_data_exchanged_in_the_training_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every formula is right, and the step hands over the wrong ends."""

    class Exchanged(RectifiedFlow):
        def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
            return super().noised(data, noise, t)

    original = step.objective_loss

    def wrong(trainee: Any, *arguments: Any) -> Tensor:
        return original(replace(trainee, objective=Exchanged()), *arguments)

    monkeypatch.setattr(model_checks, "objective_loss", wrong)
    assert set(failed(checked(config))) == {"timesteps are 1000 (1 - t)"}


@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["t", "1000 t"])
def test_a_wrong_timestep(config: Config, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """t as it is moves 54 of 320 dimensions; 1000 t runs backwards. Both stay in range and train, badly."""
    monkeypatch.setattr(RectifiedFlow, "timesteps", lambda self, t: scale * t)
    assert set(failed(checked(config))) == {"timesteps are 1000 (1 - t)"}


def encode_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[EncodedBatch], EncodedBatch]) -> None:
    """Sabotage what the task makes from a batch."""
    original = ShadowTask.encode
    monkeypatch.setattr(ShadowTask, "encode", lambda *arguments: change(original(*arguments)))


@pytest.mark.parametrize("sabotage", ["half weights", "trainable"])
def test_a_vae_that_is_not_frozen_in_float32(config: Config, monkeypatch: pytest.MonkeyPatch, sabotage: str) -> None:
    """A half VAE refuses to encode: it must be reported before, as a check."""

    def load(*arguments: Any, **named: Any) -> ImageVae:
        loaded = load_vae(*arguments, **named)
        if sabotage == "trainable":
            loaded.autoencoder.requires_grad_(True)
        else:
            loaded.autoencoder.decoder.half()
        return loaded

    monkeypatch.setattr(shadow_task, "load_vae", load)
    checks = failed(checked(config))
    assert set(checks) == {"VAE is frozen in float32"}
    seen = checks["VAE is frozen in float32"]["seen"]
    assert "float16, float32" in seen if sabotage == "half weights" else not seen.startswith("0 trainable")


def test_latents_in_half(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's overflows float16: it must be found even where this picture does not."""
    encode_with(monkeypatch, lambda encoded: replace(encoded, data=encoded.data.half()))
    names = failed(checked(config))
    assert {"VAE latents are finite", PATH} <= set(names)
    assert "shadow latent (data) is float16, not float32" in names[PATH]["seen"]


@pytest.mark.parametrize("part", ["data", "concatenated"])
def test_latents_that_are_not_finite(config: Config, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def overflow(encoded: EncodedBatch) -> EncodedBatch:
        tensor = encoded.tensors()[part].clone()
        tensor[0, 0, 0, 0] = float("inf")
        return replace(encoded, data=tensor) if part == "data" else encoded.with_conditions(**{part: tensor})

    encode_with(monkeypatch, overflow)
    assert {"VAE latents are finite", PATH} <= set(failed(checked(config)))


def test_latents_without_their_scale(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_with(monkeypatch, lambda encoded: replace(encoded, data=encoded.data * 1e4))
    assert "shadow latent (data) in [" in failed(checked(config))[PATH]["seen"]


# --- what the model is given --------------------------------------------------------------------------------------


def test_the_target_among_the_conditions(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model would learn to copy, with a splendid loss."""

    def leak(encoded: EncodedBatch) -> EncodedBatch:
        return encoded.with_conditions(
            concatenated=torch.cat([encoded.data, encoded.conditions.concatenated[:, 4:]], dim=1)
        )

    encode_with(monkeypatch, leak)
    checks = failed(checked(config))
    assert "moved: object latent" in checks["the target does not reach the conditions"]["seen"]
    assert "shadow map -> data, object latent" in checks["each input has its own channels"]["seen"]


def test_the_target_in_the_embedding(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(encoded: EncodedBatch) -> EncodedBatch:
        return encoded.with_conditions(
            embedding=encoded.conditions.embedding + 1e-6 * encoded.data.mean(dim=(1, 2, 3))[:, None]
        )

    encode_with(monkeypatch, leak)
    assert "moved: light embedding" in failed(checked(config))["the target does not reach the conditions"]["seen"]


def test_the_mask_before_the_object(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invisible at init, where the new channels weigh nothing, and later in no loss; checkpoints do not interchange."""

    def swap(encoded: EncodedBatch) -> EncodedBatch:
        return encoded.with_conditions(concatenated=encoded.conditions.concatenated.roll(1, dims=1))

    encode_with(monkeypatch, swap)
    checks = failed(checked(config))
    assert "mask -> object latent" in checks["each input has its own channels"]["seen"]
    assert "the target does not reach the conditions" not in checks


def test_lights_exchanged_between_samples(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_with(monkeypatch, lambda encoded: encoded.with_conditions(embedding=encoded.conditions.embedding.flip(0)))
    assert set(failed(checked(config))) == {"each sample has its own light"}


# --- the path table -----------------------------------------------------------------------------------------------


def test_a_light_out_of_its_own_range() -> None:
    """300 is a good phi and no theta; the three have limits of their own."""
    path, picture = PathTable(), torch.zeros(1, 3, 8, 8)
    light = torch.tensor([[300.0, 300.0, 300.0]])
    shadow_checks.add_inputs(path, Batch(["a"], picture, picture[:, :1], picture[:, :1], light))
    seen = path.check().seen
    assert "light theta in [300, 300]" in seen and "light size in [300, 300]" in seen and "light phi" not in seen


def test_a_wrong_shape_and_a_wrong_dtype() -> None:
    path = PathTable()
    path.add("input", "picture", torch.zeros(2, 3, 16, 16), "(B, 3, H, W)", (0, 1))
    path.add("VAE", "latents", torch.zeros(2, 4, 2, 2), "(B, 4, h, w)", (0, 1))
    assert path.check().passed
    path.add("loss", "loss", torch.zeros(3, dtype=torch.float64), "(B)", (0, 1))
    check = path.check()
    assert not check.passed
    assert check.seen == "loss is float64, not float32; loss (3,) is not (B)"


def test_latents_that_are_not_an_eighth() -> None:
    path = PathTable()
    path.add("input", "picture", torch.zeros(1, 3, 32, 32), "(B, 3, H, W)", None)
    path.add("VAE", "latents", torch.zeros(1, 4, 8, 8), "(B, 4, h, w)", None)
    assert path.check().seen == "latent height 8 is not an eighth of 32"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-pure"])
def test_every_row_says_its_dtype(stage_folder: dict[str, Path], tmp_path: Path, precision: str) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, f"precision={precision}", "allow_unsafe=true")
    path = {row["tensor"]: row["dtype"] for row in checked(config).summary["path"]}
    assert path["timestep 1000 (1 - t)"] == path["loss per sample"] == path["light embedding"] == "float32"
    assert path["velocity"] == {"fp32": "float32", "bf16": "bfloat16", "fp16-pure": "float16"}[precision]
    assert path["input [x_t, object, mask]"] == ("float16" if precision == "fp16-pure" else "float32")


# --- float32 islands, light, widening ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["timesteps", "sinusoids", "embedding", "light"])
def test_t_or_its_embedding_in_half(config: Config, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def half_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.half()

    if place == "timesteps":
        monkeypatch.setattr(RectifiedFlow, "timesteps", lambda self, t: (1000 * (1 - t)).half())
    elif place == "sinusoids":
        build_with(monkeypatch, lambda unet: unet.time_proj.register_forward_hook(half_output))
    elif place == "embedding":
        build_with(monkeypatch, lambda unet: unet.time_embedding.register_forward_hook(half_output))
    else:
        encode_with(monkeypatch, lambda encoded: encoded.with_conditions(embedding=encoded.conditions.embedding.half()))
    assert "t and its embedding are float32" in failed(checked(config))


def test_the_light_is_cut_off_from_the_gradient(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output answers and every weight learns, but nothing would flow back into the light."""

    def cut(unet: Any) -> None:
        unet.class_embedding.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))

    build_with(monkeypatch, cut)
    checks = failed(checked(config))
    assert set(checks) == {f"output and gradient answer to {name}" for name in ("theta", "phi", "size")}
    assert checks["output and gradient answer to phi"]["seen"].endswith("gradient 0.00e+00")


def test_loaded_channels_that_never_learned(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """Nine channels in the file, five of them zero: no widening here and now that would excuse it."""
    tiny.shadow_unet(stage_folder["unet"]).save_pretrained(tmp_path / "nine")
    config = tiny.stage_config({**stage_folder, "unet": tmp_path / "nine"}, tmp_path / "runs")
    check = failed(checked(config))["conv_in ignores the new channels at init"]
    assert "9 channels came with the weights; norm of the new ones 0" in check["seen"]


def test_a_task_that_concatenates_nothing(config: Config) -> None:
    """Four channels as the weights have them: there is no new one to be judged."""
    task = open_task(config, torch.device("cpu"))
    task.spec = replace(ShadowTask.spec, in_channels=4, inputs=("x_t",))
    unet = load_unet("random", "tiny", task.spec, seed=0)
    config = config.model_copy(update={"model": config.model.model_copy(update={"weights": "random"})})
    found = structure(config, unet, task)
    assert {check.name for check in found} >= {"UNet parameters", "no cross-attention left"}
    assert all(check.passed for check in found), found


def test_what_is_frozen_stays_frozen(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks ask for other gradients for a while; whoever trains on afterwards must not train more."""
    kept: list[Any] = []
    build_with(monkeypatch, kept.append)
    config = tiny.stage_config(stage_folder, tmp_path, "train.trainable=['*.attn1.*']")
    assert failed(checked(config)) == {}
    trained = {name for name, parameter in kept[0].named_parameters() if parameter.requires_grad}
    assert trained and all(".attn1." in name for name in trained)


def test_another_architecture_than_said(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, "model.architecture=sdxl")
    names = failed(checked(config))
    assert "2,019,019,844 in 1,190 tensors" in names["UNet parameters"]["expected"]
    assert "83,653,863" in names["VAE parameters"]["expected"]


def test_random_weights_are_counted(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.stage_config(stage_folder, tmp_path, "model.weights=random")
    build_with(monkeypatch, lambda unet: setattr(unet.conv_out, "bias", None))
    assert set(failed(checked(config))) == {"UNet parameters"}


def test_one_named_sample(config: Config) -> None:
    assert checked(config, sample="img_00003").summary["sample"] == "img_00003"
    with pytest.raises(UserError, match=r"no such id; its first are img_00000"):
        checked(config, sample="img_99999")


def test_every_failure_says_what_to_do(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, lambda unet: [p.fill_(float("nan")) for p in unet.parameters()])
    for check in failed(checked(config)).values():
        assert len(check["mend"]) > 20
        assert check["mend"] != "as above"


def test_defaults_need_no_network() -> None:
    config = load_config()
    assert (config.model.weights, config.model.vae, config.data.path) == ("random", "embedded", "embedded")
