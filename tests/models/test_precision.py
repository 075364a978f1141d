"""What each --precision does to the dtypes inside the UNet, and the islands that stay float32 whatever it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shadowlab.errors import UserError
from shadowlab.models.precision import POLICIES
from tests import tiny

CPU = torch.device("cpu")
AUTOCAST = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPERATORS = {**AUTOCAST, "fp16-pure": torch.float16}


def run(hub_folder: Path, name: str) -> tuple[Any, dict[str, Tensor], Tensor]:
    """The prepared UNet, the output of each module by name, and the velocity. A light that half types would round."""
    unet = tiny.shadow_unet(hub_folder)
    policy = POLICIES[name]
    policy.prepare(unet)
    outputs: dict[str, Tensor] = {}
    for module_name, module in unet.named_modules():
        module.register_forward_hook(lambda m, i, o, n=module_name: outputs.update({n: o}))
    batch = tiny.encoded_batch([0, 1])
    with policy.autocast(CPU):
        predicted = tiny.predicted(unet, batch, torch.tensor([0.3333, 0.7]))
    return unet, outputs, predicted


@pytest.mark.parametrize("name", list(OPERATORS))
def test_dtypes(hub_folder: Path, name: str) -> None:
    unet, outputs, predicted = run(hub_folder, name)
    weights = torch.float16 if name == "fp16-pure" else torch.float32
    assert {p.dtype for p in unet.parameters()} == {weights}
    assert outputs["time_proj"].dtype == torch.float32
    assert outputs["conv_in"].dtype == OPERATORS[name]
    assert outputs["mid_block.resnets.0.conv1"].dtype == OPERATORS[name]
    assert predicted.dtype == torch.float32
    if name != "fp16-pure":
        assert outputs["time_embedding"].dtype == outputs["class_embedding"].dtype == torch.float32


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp16-pure"])
@pytest.mark.parametrize("module_name", ["time_embedding", "class_embedding"])
def test_embeddings_are_computed_in_float32(hub_folder: Path, name: str, module_name: str) -> None:
    """Not only returned in float32: equal to the float32 computation, up to the rounding of the result."""
    unet, outputs, _ = run(hub_folder, name)
    reference, wanted, _ = run(hub_folder, "fp32")
    if name == "fp16-pure":  # the same rounded weights, but float32 arithmetic
        source = (
            outputs["time_proj"].half()
            if module_name == "time_embedding"
            else tiny.encoded_batch([0, 1]).conditions.embedding
        )
        reference.load_state_dict({key: value.float() for key, value in unet.state_dict().items()})
        expected = reference.get_submodule(module_name)(source.float()).half()
    else:
        expected = wanted[module_name]
    assert torch.equal(outputs[module_name], expected)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp16-pure"])
def test_norms_survive_what_a_half_type_cannot_square(hub_folder: Path, name: str) -> None:
    unet = tiny.shadow_unet(hub_folder)
    POLICIES[name].prepare(unet)
    dtype = torch.float16 if name == "fp16-pure" else torch.float32
    norms = [m for m in unet.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm))]
    assert len(norms) > 10
    for norm in norms:
        width = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.normalized_shape[0]
        x = torch.linspace(-60_000, 60_000, width).view(1, width, *([1] * isinstance(norm, nn.GroupNorm)))
        x = x.expand(2, *x.shape[1:]).to(OPERATORS[name])
        with POLICIES[name].autocast(CPU):
            out = norm(x)
        assert out.dtype == dtype
        assert 0.5 < out.abs().max() < 10


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp16-pure"])
def test_gradients_reach_every_parameter(hub_folder: Path, name: str) -> None:
    unet, _, predicted = run(hub_folder, name)
    predicted.square().mean().backward()
    without = [n for n, p in unet.named_parameters() if p.grad is None or p.grad.dtype != p.dtype]
    assert not without


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "fp16-pure"])
def test_checkpointed_activations_change_no_gradient(hub_folder: Path, name: str) -> None:
    """Recomputation must happen in the same precision as the first pass."""
    gradients = []
    for checkpointed in (False, True):
        unet = tiny.shadow_unet(hub_folder)
        if checkpointed:
            unet.enable_gradient_checkpointing()
        POLICIES[name].prepare(unet)
        batch = tiny.encoded_batch([0, 1])
        with POLICIES[name].autocast(CPU):
            out = tiny.predicted(unet, batch, torch.tensor([0.2, 0.7]))
        out.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", list(OPERATORS))
def test_prepared_weights_save_under_their_own_names(hub_folder: Path, tmp_path: Path, name: str) -> None:
    unet = tiny.shadow_unet(hub_folder)
    names = list(unet.state_dict())
    POLICIES[name].prepare(unet)
    assert list(unet.state_dict()) == names


@pytest.fixture
def tf32_flags() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_flags")
def test_tf32_flags() -> None:
    """torch leaves TF32 off for matmul and on for convolutions; a policy says both."""
    for name, policy in POLICIES.items():
        policy.apply_to_backend(torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 is (name == "tf32")
        assert torch.backends.cudnn.allow_tf32 is (name == "tf32")


def test_tf32_needs_nvidia() -> None:
    with pytest.raises(UserError, match="NVIDIA GPUs only; use fp32") as caught:
        POLICIES["tf32"].apply_to_backend(CPU)
    assert caught.value.exit_code == 2


def test_only_fp16_scales_its_gradients() -> None:
    assert [name for name, policy in POLICIES.items() if policy.scales_gradients] == ["fp16"]


@pytest.mark.parametrize("name", ["bf16", "fp16-pure"])
def test_averaged_weights_are_float32(hub_folder: Path, name: str) -> None:
    trainee = tiny.trainee_of(hub_folder, f"precision={name}", "allow_unsafe=true")
    assert trainee.ema is not None
    assert {p.dtype for p in trainee.ema.shadow_params} == {torch.float32}
    with torch.no_grad():
        for parameter in trainee.unet.parameters():
            parameter.add_(0.25)
    trainee.ema.step(trainee.parameters().values())
    assert {p.dtype for p in trainee.ema.shadow_params} == {torch.float32}
