"""Benign steps: ordinary events of training, and bad values that reach nothing that is kept. No verdict."""

import copy

import torch
from torch import Tensor, nn

from shadowlab.bench.corpus.case import Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def _calibration(clip: bool) -> Scene:
    torch.manual_seed(9)
    model, batch = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(batch["x"])
        loss = (output.float() - 10).pow(2).sum()
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Scene(step, model, optimizer, batch)


def scaler_calibration() -> Scene:
    """The default scale of 65536 overflows a float16 backward; the scaler skips this step and halves."""
    return _calibration(clip=False)


def scaler_calibration_with_clipping() -> Scene:
    """The same with unscaled and clipped gradients: the clip norm is not finite and the step is skipped."""
    return _calibration(clip=True)


def unused_parameters() -> Scene:
    """Half of the model has no gradient, a quarter has gradients of zero; AdamW's eps holds."""
    torch.manual_seed(10)
    model = nn.ModuleDict({name: nn.Linear(8, 4) for name in ("used", "silenced", "unused", "frozen")})
    model["frozen"].requires_grad_(False)
    batch = {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    def compute_loss() -> Tensor:
        return (model["used"](batch["x"]) + 0.0 * model["silenced"](batch["x"])).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def guarded_logarithm() -> Scene:
    """The double `where`: the logarithm of zero is taken only in a copy that nothing differentiates or returns."""
    torch.manual_seed(12)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    batch = {"x": torch.randn(5, 8)}

    def compute_loss() -> Tensor:
        p = model(batch["x"])
        unguarded = p.detach().log()
        safe = torch.where(p > 0, p, 1.0)
        return torch.where(p > 0, p * safe.log(), 0.0).mean() + 0.1 * unguarded[p > 0].mean()

    return Scene(training_step(compute_loss), model, None, batch)


def metric_of_nothing() -> Scene:
    """A metric after the update averages over no sample; it is printed and not returned."""
    torch.manual_seed(13)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    metrics = {}

    def step() -> Tensor:
        loss = one_step()
        with torch.no_grad():
            metrics["accuracy"] = model(batch["x"])[:0].mean().item()
        return loss

    return Scene(step, model, optimizer, batch)


def best_so_far() -> Scene:
    """The best loss so far is inf, as a tensor and in the optimizer's parameter group."""
    torch.manual_seed(16)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["best"] = torch.inf
    best = {"loss": torch.tensor(torch.inf)}
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        best["loss"] = torch.minimum(best["loss"], loss.detach())
        optimizer.param_groups[0]["best"] = min(optimizer.param_groups[0]["best"], loss.item())
        return loss

    return Scene(step, model, optimizer, batch)


def healthy_bfloat16() -> Scene:
    """A bfloat16 model with AdamW's default eps, which bfloat16 can represent, and an average of its weights."""
    torch.manual_seed(19)
    model, batch = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)).bfloat16(), {"x": torch.zeros(5, 8)}
    average = copy.deepcopy(model).float().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    one_step = training_step(lambda: model(batch["x"].bfloat16()).float().pow(2).mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        with torch.no_grad():
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(current.float(), 0.1)
        return loss

    return Scene(step, [model, average], optimizer, batch)


def fused_float16() -> Scene:
    """Fused AdamW computes a float16 update in float32: the eps that rounds to zero elsewhere does not here."""
    torch.manual_seed(20)
    model, batch = nn.Linear(8, 4).half(), {"x": torch.ones(5, 8).half()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step = training_step(lambda: 1e-4 * model(batch["x"]).float().sum(), optimizer)
    return Scene(step, model, optimizer, batch)


def large_but_finite() -> Scene:
    """A loss and gradients of about 1e17, whose squares are still within float32 in every phase."""
    torch.manual_seed(21)
    model, batch = nn.Linear(8, 4), {"x": 1e15 * torch.randn(5, 8)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        loss = 1e2 * model(batch["x"]).abs().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def saturating_overflow() -> Scene:
    """exp overflows to inf and 1 / (1 + inf) is exactly the zero that a sigmoid should give; no gradient flows."""
    torch.manual_seed(22)
    model, batch = (
        nn.Linear(8, 4),
        {"x": torch.randn(5, 8), "gate": torch.tensor([[0.0], [1.0], [-200.0], [2.0], [3.0]])},
    )
    step = training_step(lambda: (model(batch["x"]) / (1 + torch.exp(-batch["gate"]))).pow(2).mean())
    return Scene(step, model, None, batch)


def slope_behind_closed_gate() -> Scene:
    """The slope of a root is infinite at zero, but the ReLU before it is closed there and lets nothing through."""
    torch.manual_seed(24)
    model, batch = nn.Sequential(nn.Linear(8, 6), nn.ReLU()), {"x": torch.randn(5, 8)}
    return Scene(training_step(lambda: model(batch["x"]).sqrt().mean()), model, None, batch)


def scrubbed_gradient() -> Scene:
    """A hook replaces the infinite slope of a known pole by zero, so that no parameter gradient is ever bad."""
    torch.manual_seed(23)
    model, batch = nn.Linear(8, 6, bias=False), {"x": torch.randn(5, 8)}
    batch["x"][3] = 0

    def compute_loss() -> Tensor:
        squared = model(batch["x"]).pow(2).sum(-1)
        squared.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))
        return squared.sqrt().mean()

    return Scene(training_step(compute_loss), model, None, batch)


FAULTS: tuple[Fault, ...] = (
    Fault("scaler_calibration", "NVIDIA/apex#864", scaler_calibration, None, ("scaler", "autocast", "float16")),
    Fault(
        "scaler_calibration_with_clipping",
        "NVIDIA/apex#864",
        scaler_calibration_with_clipping,
        None,
        ("scaler", "autocast", "float16"),
    ),
    Fault("unused_parameters", "synthetic", unused_parameters, None, ("foreach",)),
    Fault("guarded_logarithm", "synthetic", guarded_logarithm, None, ("where",)),
    Fault("metric_of_nothing", "synthetic", metric_of_nothing, None),
    Fault("best_so_far", "synthetic", best_so_far, None),
    Fault("healthy_bfloat16", "synthetic", healthy_bfloat16, None, ("bfloat16", "models", "foreach")),
    Fault("fused_float16", "synthetic", fused_float16, None, ("float16", "fused")),
    Fault("large_but_finite", "synthetic", large_but_finite, None),
    Fault("saturating_overflow", "synthetic", saturating_overflow, None),
    Fault("slope_behind_closed_gate", "synthetic", slope_behind_closed_gate, None, ("where",)),
    Fault("scrubbed_gradient", "synthetic", scrubbed_gradient, None, ("hook",)),
)
