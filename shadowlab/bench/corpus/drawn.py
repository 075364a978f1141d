"""Values for each sample that the batch does not name: drawn in the step, kept elsewhere, or under vmap."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import gradient_of, training_step


def noise_level_of_nothing() -> Scene:
    """Flow matching as in diffusers' SD3 script: levels drawn in the step, weighed by sigma**-2, and one is zero."""
    torch.manual_seed(0)
    transformer = nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4)
    levels = torch.linspace(1, 0, 5)
    batch: dict[str, Any] = {"latents": torch.randn(4, 8), "prompt": ["a dog", "a cat", "a fox", "an owl"]}

    def compute_loss() -> Tensor:
        sigmas = levels[torch.multinomial(torch.ones(5), 4)][:, None]
        noise = torch.randn_like(batch["latents"])
        noisy = (1 - sigmas) * batch["latents"] + sigmas * noise
        predicted = transformer(torch.cat([noisy, sigmas], 1))
        weighting = (sigmas**-2.0).float()  # origin
        return (weighting * (predicted - (noise - batch["latents"])).pow(2)).mean()

    step = training_step(compute_loss, optimizer)

    def seeded() -> Tensor:
        torch.manual_seed(3)  # the last of the four levels is zero
        return step()

    return Scene(seeded, transformer, optimizer, batch)


def skipped_preconditioning() -> Scene:
    """EDM: the network's input is scaled by a noise level drawn before the call, which one sample has as zero."""
    torch.manual_seed(1)

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(7, 12), nn.SiLU(), nn.Linear(12, 6))

        def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
            level = sigma.log() / 4  # origin
            return self.net(torch.cat([noisy / (1 + sigma**2).sqrt(), level], 1))

    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"images": torch.randn(5, 6)}

    def compute_loss() -> Tensor:
        torch.manual_seed(12)  # the fourth of the five levels is zero
        sigma = (torch.randn(5, 1) * 1.2 - 1.2).exp() * (torch.rand(5, 1) > 0.2)
        noisy = batch["images"] + sigma * torch.randn_like(batch["images"])
        return (model(noisy, sigma) - batch["images"]).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def depth_that_is_missing() -> Scene:
    """Depth estimation: the ground truth comes from a list of its own, and a missing pixel of it is zero."""
    torch.manual_seed(2)
    model = nn.Conv2d(3, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {"rgb_norm": torch.randn(4, 3, 4, 4), "index": torch.tensor([120, 7, 95, 31])}
    truth = torch.rand(4, 1, 4, 4) + 0.5
    truth[3, 0, 1, 2] = 0.0

    def compute_loss() -> Tensor:
        predicted = F.softplus(model(batch["rgb_norm"]))
        difference = predicted.log() - truth.log()  # origin
        return (difference.pow(2).mean() - 0.85 * difference.mean() ** 2).sqrt()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def private_gradients() -> Scene:
    """DP-SGD by vmap of grad: each sample's gradient is clipped by its norm, and one sample has none."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.init.constant_(model.get_parameter("0.weight"), 0.3)
    nn.init.zeros_(model.get_parameter("0.bias"))
    model.get_parameter("2.bias").requires_grad_(False)
    batch = {"x": torch.rand(4, 5), "y": torch.randn(4, 2)}
    batch["x"][1] *= -1

    def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(model, parameters, x[None])[0] - y).pow(2).sum()

    def step() -> None:
        parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        each = vmap(grad(loss_of), (None, 0, 0))(parameters, batch["x"], batch["y"])
        norms = sum(g.flatten(1).pow(2).sum(1) for g in each.values()) ** 0.5
        scale = 1.0 / norms  # origin
        for name, parameter in model.named_parameters():
            if name in each:
                parameter.grad = torch.einsum("b,b...->...", scale, each[name]) / len(scale)
        optimizer.step()

    return Scene(step, model, optimizer, batch)


def loss_under_vmap() -> Scene:
    """A loss for one sample, mapped over the batch; its logarithm meets one prediction that is exactly zero."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nn.init.constant_(model.get_parameter("0.weight"), 0.4)
    batch = {"x": torch.rand(4, 5) + 0.5, "y": torch.rand(4, 3)}
    batch["x"][2] = -3.0

    def loss_of(rate: Tensor, count: Tensor) -> Tensor:
        return (rate - count * torch.log(rate)).sum()  # origin

    step = training_step(lambda: vmap(loss_of)(model(batch["x"]), batch["y"]).mean(), optimizer)
    return Scene(step, model, optimizer, batch)


def recording_of_a_list() -> Scene:
    """Speech: recordings lie in a list of the data set; the step standardises those it takes, and one is silent."""
    torch.manual_seed(5)
    model = nn.GRU(4, 6, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    recordings = [torch.randn(3, 4) for _ in range(6)]
    recordings[4] = torch.full((3, 4), 0.25)
    batch: dict[str, Any] = {"idx": torch.tensor([5, 0, 4]), "text": ["left", "right", "stop"]}

    def compute_loss() -> Tensor:
        waves = torch.stack([recordings[i] for i in batch["idx"].tolist()])
        frames = (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True)  # origin
        return model(frames)[0].pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def flat_gradient_bucket() -> Scene:
    """Gradients of all parameters in one flat bucket, as long as the batch: an overflow in it belongs to no sample."""
    torch.manual_seed(6)
    model = nn.Linear(3, 2).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = {"x": torch.full((8, 3), 8.0)}

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = 250 * model(batch["x"].half()).float().sum()
        loss.backward()
        bucket = torch.cat([gradient_of(p).flatten() for p in model.parameters()])
        bucket = bucket * 16  # origin
        start = 0
        for parameter in model.parameters():
            parameter.grad = bucket[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def one_long_signal() -> Scene:
    """A single signal (T,) is the input: the index of a bad element is a time, and no sample."""
    torch.manual_seed(7)

    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taps = nn.Parameter(torch.randn(1, 1, 3))

        def forward(self, signal: Tensor) -> Tensor:
            loud = torch.log10(signal.abs())  # origin
            return F.conv1d(loud[None, None], self.taps)[0, 0]

    model = Filter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"signal": torch.randn(12)}
    batch["signal"][5] = 0.0
    return Scene(training_step(lambda: model(batch["signal"]).pow(2).mean(), optimizer), model, optimizer, batch)


def masked_neighbours() -> Scene:
    """Attention masks padding of several samples by -inf, as it should; the fault is an overflow in another one."""
    torch.manual_seed(8)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor, valid: Tensor) -> Tensor:
            scores = (self.query(x) @ self.key(x).transpose(1, 2)).masked_fill(~valid[:, None], -torch.inf)
            weights = torch.exp(scores)  # origin
            return (weights / weights.sum(-1, keepdim=True)) @ self.value(x)

    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(5, 4, 6), "valid": torch.ones(5, 4, dtype=torch.bool)}
    batch["valid"][0, 2:] = False
    batch["valid"][4, 3:] = False
    batch["x"][2] *= 60
    step = training_step(lambda: model(batch["x"], batch["valid"]).pow(2).mean(), optimizer)
    return Scene(step, model, optimizer, batch)


def healthy_vmap() -> Scene:
    """Benign: per-sample gradients with a guarded norm, and a causal mask of -inf in the mapped function."""
    torch.manual_seed(9)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(3, 5, 4)}
    causal = torch.full((5, 5), -torch.inf).triu(1)

    def loss_of(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        keys = functional_call(model, parameters, x)
        return ((keys @ x.T + causal).softmax(-1) @ x).pow(2).mean()

    def step() -> None:
        each = vmap(grad(loss_of), (None, 0))(dict(model.named_parameters()), batch["x"])
        norms = sum(g.flatten(1).pow(2).sum(1) for g in each.values()) ** 0.5
        for name, parameter in model.named_parameters():
            parameter.grad = torch.einsum("b,b...->...", 1 / norms.clamp(min=1.0), each[name]).detach()
        optimizer.step()

    return Scene(step, model, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "noise_level_of_nothing",
        "huggingface/diffusers#8528",
        noise_level_of_nothing,
        Expected("loss", "divide_by_zero", "out_of_domain", "pow", samples=(3,), sample_ids=(), at_origin=True),
        ("samples", "inf_first"),
    ),
    Fault(
        "skipped_preconditioning",
        "TiankaiHang/Min-SNR-Diffusion-Training#4",
        skipped_preconditioning,
        Expected("forward", "divide_by_zero", "out_of_domain", "log", "", samples=(3,), at_origin=True),
        ("samples", "inf_first"),
    ),
    Fault(
        "depth_that_is_missing",
        "dontLoveBugs/DORN_pytorch#23",
        depth_that_is_missing,
        Expected("loss", "divide_by_zero", ..., "log", samples=(3,), sample_ids=("31",), at_origin=True),
        ("samples", "inf_first"),
    ),
    Fault(
        "private_gradients",
        "meta-pytorch/opacus#445",
        private_gradients,
        Expected(..., "divide_by_zero", "out_of_domain", samples=(1,), at_origin=True),
        ("vmap", "inf_first"),
    ),
    Fault(
        "loss_under_vmap",
        "RasmussenLab/vamb#12",
        loss_under_vmap,
        Expected("loss", "divide_by_zero", "out_of_domain", "log", samples=(2,), at_origin=True),
        ("vmap", "inf_first"),
    ),
    Fault(
        "recording_of_a_list",
        "philipperemy/deep-speaker#5",
        recording_of_a_list,
        Expected("data", "invalid", "out_of_domain", "div", samples=(2,), sample_ids=("4",), at_origin=True),
        ("samples",),
    ),
    Fault(
        "flat_gradient_bucket",
        "NVIDIA/Megatron-LM#780",
        flat_gradient_bucket,
        Expected(..., "overflow", "overflow", "mul", samples=(), at_origin=True),
        ("samples", "float16", "inf_first"),
    ),
    Fault(
        "one_long_signal",
        "maxrmorrison/torchcrepe#5",
        one_long_signal,
        Expected("forward", "divide_by_zero", "out_of_domain", "log10", "", samples=(), at_origin=True),
        ("samples", "inf_first"),
    ),
    Fault(
        "masked_neighbours",
        "pytorch/pytorch#26098",
        masked_neighbours,
        Expected("forward", "overflow", "overflow", "exp", "", samples=(2,), at_origin=True),
        ("samples", "mask", "inf_first"),
    ),
    Fault("healthy_vmap", "pytorch/functorch#381", healthy_vmap, None, ("vmap", "mask")),
)
