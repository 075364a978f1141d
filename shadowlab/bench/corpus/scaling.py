"""Faults of loss scaling, unscaling and gradient clipping."""

import torch
from torch import Tensor, nn

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import gradient_of


def collapsed_scale() -> Scene:
    """After a long run of skips the scale is the smallest subnormal: its inverse is beyond float32."""
    torch.manual_seed(0)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.4e-45)

    def step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # origin
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def zero_scale() -> Scene:
    """The scale has collapsed to zero; `scaler.step` unscales by 1/0, and 0 * inf poisons every weight."""
    torch.manual_seed(1)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=0.0)

    def step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # origin
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def unscale_overflow() -> Scene:
    """Scaled gradients are finite and pass the scaler's test; divided by a scale of 2**-20 they are not."""
    torch.manual_seed(2)
    model, batch = nn.Linear(8, 4, bias=False), {"x": torch.randn(5, 8)}
    nn.init.zeros_(model.weight)
    batch["x"][3] = 1e11
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)

    def step() -> Tensor:
        loss = 1e30 * model(batch["x"]).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # origin
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def skips_hide_forward_nan() -> Scene:
    """The scaler skips this step as any other, but the NaN is in the forward pass and no scale would cure it."""
    torch.manual_seed(3)

    class LogPower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x.float())  # origin

    model, batch = nn.Sequential(LogPower(), nn.Linear(8, 4)), {"power": torch.rand(5, 8) + 0.1}
    batch["power"][2, 3] = -1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(batch["power"])
        loss = output.float().pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def skips_hide_backward_nan() -> Scene:
    """The loss is finite and the scaler skips, but the gradient is 0/0 at every scale."""
    torch.manual_seed(4)
    model, batch = nn.Linear(8, 4, bias=False), {"x": torch.randn(5, 8)}
    batch["x"][1] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")

    def step() -> Tensor:
        energy = model(batch["x"]).pow(2).sum(-1)
        length = torch.sqrt(energy)  # origin
        loss = torch.where(energy > 0, length, 0.0).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def constant_scale_overflow() -> Scene:
    """A float16 loss of some tens is multiplied by a constant 2**15 before backward."""
    torch.manual_seed(5)
    model, batch = nn.Linear(8, 4).half(), {"x": 10 * torch.randn(5, 8).half()}

    def step() -> Tensor:
        loss = model(batch["x"]).pow(2).mean()
        scaled = loss * 32768  # origin
        scaled.backward()
        return scaled

    return Scene(step, model, None, batch)


def clip_norm_overflow() -> Scene:
    """Gradients of 1e20 are finite, their squares are not: the norm is inf and clipping sets them all to zero."""
    torch.manual_seed(6)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        loss = 1e20 * model(batch["x"]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)  # origin
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def clip_norm_overflow_float16() -> Scene:
    """A thousand float16 gradients of 4000 have a norm beyond 65504."""
    torch.manual_seed(7)
    model, batch = nn.Linear(64, 16).half(), {"x": torch.ones(5, 64).half()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        loss = 800 * model(batch["x"]).float().sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)  # origin
        optimizer.step()
        assert norm.dtype == torch.float16
        return loss

    return Scene(step, model, optimizer, batch)


def clip_norm_of_norms_overflow() -> Scene:
    """Each parameter's gradient norm is finite in float32, the norm of these norms is not."""
    torch.manual_seed(8)
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(6)))
    for weight in model.parameters():
        nn.init.ones_(weight)
    batch = {"x": torch.ones(5, 1)}

    def step() -> Tensor:
        loss = 1e19 * model(batch["x"]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # origin
        return loss

    return Scene(step, model, None, batch)


def clip_by_hand_of_zero() -> Scene:
    """limit / norm without an eps: every gradient is zero, so that the factor is infinite and 0 * inf is NaN."""
    torch.manual_seed(9)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8), "weight": torch.zeros(5, 1)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        loss = (batch["weight"] * model(batch["x"]).pow(2)).mean()
        loss.backward()
        norm = torch.stack([gradient_of(parameter).norm() for parameter in model.parameters()]).norm()
        factor = torch.div(torch.tensor(1.0), norm)  # origin
        for parameter in model.parameters():
            gradient_of(parameter).mul_(factor)
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def clip_spreads_infinity() -> Scene:
    """One gradient overflows in backward; clipping by its infinite norm makes NaN of it and zeros of the rest."""
    torch.manual_seed(10)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    nn.init.zeros_(model.weight)
    batch["x"][0, 0] = 1e20
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> Tensor:
        output = model(batch["x"])  # origin
        loss = 1e19 * output.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def _clip(exception: str, cause: str) -> Expected:
    return Expected("clip", exception, cause, at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "collapsed_scale",
        "openai/guided-diffusion#50",
        collapsed_scale,
        Expected("unscale", "overflow", "overflow", at_origin=True),
        ("inf_first", "scaler"),
    ),
    Fault(
        "zero_scale",
        "deepinsight/insightface#2262",
        zero_scale,
        Expected("unscale", "divide_by_zero", at_origin=True),
        ("inf_first", "scaler"),
    ),
    Fault(
        "unscale_overflow",
        "synthetic",
        unscale_overflow,
        Expected("unscale", "overflow", "overflow", parameter="weight", at_origin=True),
        ("inf_first", "scaler"),
    ),
    Fault(
        "skips_hide_forward_nan",
        "NVIDIA/apex#715",
        skips_hide_forward_nan,
        Expected("forward", "invalid", "out_of_domain", "log", "0", samples=(2,), at_origin=True),
        ("autocast", "float16", "scaler"),
    ),
    Fault(
        "skips_hide_backward_nan",
        "deepspeedai/DeepSpeed#8415",
        skips_hide_backward_nan,
        Expected("backward", "invalid", "out_of_domain", samples=(1,), at_origin=True),
        ("scaler", "where"),
        watched=None,  # one step that the scaler leaves out, as it does while it looks for its scale
    ),
    Fault(
        "constant_scale_overflow",
        "synthetic",
        constant_scale_overflow,
        Expected("loss", "overflow", "overflow", "mul", at_origin=True),
        ("float16", "inf_first"),
    ),
    Fault(
        "clip_norm_overflow",
        "deepspeedai/DeepSpeed#7171",
        clip_norm_overflow,
        _clip("overflow", "overflow"),
        ("foreach", "silent", "inf_first"),
    ),
    Fault(
        "clip_norm_overflow_float16",
        "synthetic",
        clip_norm_overflow_float16,
        _clip("overflow", "overflow"),
        ("float16", "silent", "inf_first"),
    ),
    Fault(
        "clip_norm_of_norms_overflow",
        "ray-project/ray#45055",
        clip_norm_of_norms_overflow,
        _clip("overflow", "overflow"),
        ("silent", "inf_first"),
    ),
    Fault(
        "clip_by_hand_of_zero",
        "synthetic",
        clip_by_hand_of_zero,
        _clip("divide_by_zero", "out_of_domain"),
        ("inf_first",),
    ),
    Fault(
        "clip_spreads_infinity",
        "pytorch/pytorch#46849",
        clip_spreads_infinity,
        Expected("backward", "overflow", "overflow", at_origin=True),
        ("inf_first", "far"),
    ),
)
