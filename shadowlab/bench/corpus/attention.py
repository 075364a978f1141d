"""Faults born inside the model's call by reduced precision and in attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def query_key_overflow() -> Scene:
    """Logits of float16 attention pass 65504 for one image; the softmax of two infinities is NaN."""
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            query, key = self.query(x), self.key(x)
            scores = query @ key.transpose(1, 2)  # origin
            return (scores * 8**-0.5).softmax(-1) @ self.value(x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x)

    model, batch = Block().half(), {"x": torch.randn(5, 6, 8)}
    batch["x"][2] *= 1000
    step = training_step(lambda: model(batch["x"].half()).float().abs().mean())
    return Scene(step, model, None, batch)


def residual_overflow() -> Scene:
    """Each of two residual branches is within float16; their sum onto the stream is not."""
    torch.manual_seed(1)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(8, 8)
            nn.init.zeros_(self.branch.weight)
            nn.init.constant_(self.branch.bias, 3e4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)  # origin

    model = nn.Sequential(Residual(), Residual()).half()
    batch = {"x": torch.full((5, 8), -2e4)}
    batch["x"][1] = 2e4
    step = training_step(lambda: model(batch["x"].half()).float().abs().mean())
    return Scene(step, model, None, batch)


def feed_forward_overflow_autocast() -> Scene:
    """Under float16 autocast the second matrix of a feed-forward block sums beyond 65504 for one prompt."""
    torch.manual_seed(2)

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wi, self.wo = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)
            nn.init.ones_(self.wi.weight)
            nn.init.ones_(self.wo.weight)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.wi(x))
            return self.wo(hidden)  # origin

    model = nn.Sequential(FeedForward(), nn.LayerNorm(8))
    batch = {"x": torch.ones(5, 8)}
    batch["x"][3] = 1000
    optimizer = torch.optim.AdamW(model.parameters())

    def compute_loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(batch["x"])
        return (output.float() - 1).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def masked_row() -> Scene:
    """An additive mask hides every key of one sample; a softmax over nothing but -inf is NaN."""
    torch.manual_seed(3)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            scores = self.query(x) @ x.transpose(1, 2) + mask
            weights = scores.softmax(-1)  # origin
            return weights @ self.value(x)

    model = Attention()
    batch = {"x": torch.randn(5, 4, 8), "valid": torch.ones(5, 4, dtype=torch.bool)}
    batch["valid"][:, 3] = False
    batch["valid"][2] = False

    def compute_loss() -> Tensor:
        mask = torch.zeros(5, 1, 4).masked_fill(~batch["valid"][:, None], -torch.inf)
        return model(batch["x"], mask).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def softmax_by_hand() -> Scene:
    """Softmax without the maximum taken off: exp(100) is beyond float32, and inf/inf is NaN."""
    torch.manual_seed(4)

    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            odds = torch.exp(x)  # origin
            return odds / odds.sum(-1, keepdim=True)

    model = nn.Sequential(nn.Linear(8, 4), Router(), nn.Linear(4, 4))
    nn.init.ones_(model.get_parameter("0.weight"))
    batch = {"x": torch.randn(5, 8)}
    batch["x"][1] = 15.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def rms_norm_epsilon_underflow() -> Scene:
    """Small activations squared and an eps of 1e-8 are both zero in float16; rsqrt(0) is infinite."""
    torch.manual_seed(5)

    class RMSNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8)  # origin

    model = nn.Sequential(RMSNorm(), nn.Linear(8, 4)).half()
    batch = {"x": torch.randn(5, 8).half()}
    batch["x"][4] = 1e-4
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def normalise_epsilon_underflow() -> Scene:
    """x / (|x| + 1e-8) of a zero row: the eps rounds to zero in float16, so that 0/0 is left."""
    torch.manual_seed(6)

    class Normalise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            length = x.norm(dim=-1, keepdim=True)
            return x / (length + 1e-8)  # origin

    model = nn.Sequential(Normalise(), nn.Linear(8, 4)).half()
    batch = {"x": torch.randn(5, 8).half()}
    batch["x"][0] = 0
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def cast_overflow() -> Scene:
    """A bfloat16 trunk hands 1e6 to a float16 head; the cast itself overflows."""
    torch.manual_seed(7)

    class MixedHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 4).half()

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.trunk(x)
            return self.head(hidden.to(torch.float16))  # origin

    model, batch = MixedHead(), {"x": torch.randn(5, 8).bfloat16()}
    batch["x"][2] *= 1e6
    step = training_step(lambda: model(batch["x"]).float().abs().mean())
    return Scene(step, model, None, batch)


def power_overflow_bfloat16() -> Scene:
    """An eighth power leaves even bfloat16's range for one sample."""
    torch.manual_seed(8)

    class Polynomial(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.pow(x, 8)  # origin

    model = nn.Sequential(nn.Identity(), Polynomial(), nn.Linear(8, 4)).bfloat16()
    batch = {"x": torch.rand(5, 8).bfloat16()}
    batch["x"][3] = 1e5
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def softplus_by_hand_bfloat16() -> Scene:
    """log(1 + exp(x)) written out: exp(200) is infinite in bfloat16, where softplus(200) is 200."""
    torch.manual_seed(9)

    class Softplus(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(1 + torch.exp(x))  # origin

    model = nn.Sequential(Softplus(), nn.Linear(8, 4)).bfloat16()
    batch = {"x": torch.randn(5, 8).bfloat16()}
    batch["x"][1] = 200
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def saturated_probability_bfloat16() -> Scene:
    """sigmoid(8) is 1 in bfloat16, so that log(1 - p) has a zero to take the logarithm of."""
    torch.manual_seed(10)

    class Odds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            probability = x.sigmoid()
            return torch.log(1 - probability)  # origin

    model = nn.Sequential(Odds(), nn.Linear(8, 4)).bfloat16()
    batch = {"x": torch.randn(5, 8).bfloat16()}
    batch["x"][2] = 8
    step = training_step(lambda: model(batch["x"]).float().pow(2).mean())
    return Scene(step, model, None, batch)


def _born(exception: str, cause: object, op: object, module: object, samples: object) -> Expected:
    return Expected("forward", exception, cause, op, module, samples=samples, at_origin=True)


def _overflow(op: object, module: str, sample: int) -> Expected:
    return _born("overflow", "overflow", op, module, (sample,))


FAULTS: tuple[Fault, ...] = (
    Fault(
        "query_key_overflow",
        "showlab/Tune-A-Video#103",
        query_key_overflow,
        _overflow(..., "attention", 2),
        ("float16", "inf_first"),
    ),
    Fault(
        "residual_overflow",
        "huggingface/diffusers#9096",
        residual_overflow,
        _overflow("add", "1", 1),
        ("float16", "inf_first"),
    ),
    Fault(
        "feed_forward_overflow_autocast",
        "huggingface/transformers#9295",
        feed_forward_overflow_autocast,
        _overflow(..., "0.wo", 3),
        ("float16", "autocast", "inf_first"),
    ),
    Fault("masked_row", "synthetic", masked_row, _born("invalid", "masked_row", ..., "", (2,)), ("float32", "mask")),
    Fault("softmax_by_hand", "synthetic", softmax_by_hand, _overflow("exp", "1", 1), ("float32", "inf_first")),
    Fault(
        "rms_norm_epsilon_underflow",
        "synthetic",
        rms_norm_epsilon_underflow,
        _born("divide_by_zero", "underflow", "rsqrt", "0", (4,)),
        ("float16", "inf_first"),
    ),
    Fault(
        "normalise_epsilon_underflow",
        "synthetic",
        normalise_epsilon_underflow,
        _born("invalid", "underflow", "div", "0", (0,)),
        ("float16",),
    ),
    Fault("cast_overflow", "kohya-ss/sd-scripts#1571", cast_overflow, _overflow(..., "", 2), ("float16", "bfloat16")),
    Fault("power_overflow_bfloat16", "synthetic", power_overflow_bfloat16, _overflow("pow", "1", 3), ("bfloat16",)),
    Fault("softplus_by_hand_bfloat16", "synthetic", softplus_by_hand_bfloat16, _overflow("exp", "0", 1), ("bfloat16",)),
    Fault(
        "saturated_probability_bfloat16",
        "synthetic",
        saturated_probability_bfloat16,
        _born("divide_by_zero", ..., "log", "0", (2,)),
        ("bfloat16", "inf_first"),
    ),
)
