"""Faults that a parameter, buffer, gradient or optimizer state carries into the step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def unwritten_weight() -> Scene:
    """Deferred initialisation left garbage in one weight of the second layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    model.get_parameter("2.weight").data[1, 3] = torch.nan
    batch = {"x": torch.randn(5, 8), "labels": torch.tensor([0, 1, 2, 3, 1])}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = training_step(lambda: F.cross_entropy(model(batch["x"]), batch["labels"]), optimizer)
    return Scene(step, model, optimizer, batch)


def infinite_bias() -> Scene:
    """A checkpoint cast to float16 brought an infinite bias; the normalisation after it turns it into NaN."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)).half()
    model.get_parameter("0.bias").data[2] = torch.inf
    batch = {"x": torch.randn(5, 8).half()}
    step = training_step(lambda: (model(batch["x"]).float() - 1).pow(2).mean())
    return Scene(step, model, None, batch)


def garbage_buffer() -> Scene:
    """A buffer that no checkpoint holds stayed unwritten after `to_empty`; here the memory held NaN."""
    torch.manual_seed(2)

    class Rotary(nn.Module):
        frequencies: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("frequencies", torch.full((4,), torch.nan), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            angle = torch.arange(x.shape[1])[:, None] * self.frequencies
            even, odd = x.chunk(2, dim=-1)
            return torch.cat([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.rotary = nn.Linear(8, 8), Rotary()

        def forward(self, x: Tensor) -> Tensor:
            return self.rotary(self.query(x))

    model, batch = Block(), {"x": torch.randn(5, 3, 8)}
    step = training_step(lambda: model(batch["x"]).pow(2).mean())
    return Scene(step, model, None, batch)


def poisoned_first_moment() -> Scene:
    """A resumed `exp_avg` holds one NaN; loss and gradients of the step are finite."""
    torch.manual_seed(3)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    step()
    optimizer.state[model.weight]["exp_avg"][2, 1] = torch.nan
    return Scene(step, model, optimizer, batch)


def infinite_momentum() -> Scene:
    """A momentum buffer is infinite before the step."""
    torch.manual_seed(4)
    model, batch = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    step()
    optimizer.state[model.get_parameter("2.bias")]["momentum_buffer"][0] = torch.inf
    return Scene(step, model, optimizer, batch)


def infinite_second_moment() -> Scene:
    """An infinite `exp_avg_sq` freezes its weight for good: nothing but the state itself is ever non-finite."""
    torch.manual_seed(5)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    step()
    optimizer.state[model.weight]["exp_avg_sq"][0, 0] = torch.inf
    return Scene(step, model, optimizer, batch)


def tied_embedding() -> Scene:
    """Embedding and output head share one weight that holds a NaN; only the head reads its row."""
    torch.manual_seed(6)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    model = Tied()
    model.embed.weight.data[6, 0] = torch.nan
    batch = {"tokens": torch.tensor([[0, 1, 2], [3, 4, 5]])}
    step = training_step(lambda: F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["tokens"].flatten()))
    return Scene(step, model, None, batch)


def leftover_gradient() -> Scene:
    """A skipped step left a NaN gradient behind, and this step accumulates onto it."""
    torch.manual_seed(7)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    model.weight.grad = torch.zeros(4, 8)
    model.weight.grad[1] = torch.nan
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def frozen_encoder_weight() -> Scene:
    """Of two models the frozen one has an infinite weight; only the trained one shows NaN gradients."""
    torch.manual_seed(8)
    encoder, model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(dim=-1)).requires_grad_(False), nn.Linear(8, 4)
    encoder.get_parameter("0.weight")[0, 0] = torch.inf
    batch = {"x": torch.rand(5, 8) + 0.1}

    def compute_loss() -> Tensor:
        with torch.no_grad():
            features = encoder(batch["x"])
        return model(features).pow(2).mean()

    return Scene(training_step(compute_loss), [encoder, model], None, batch)


def running_variance_in_evaluation() -> Scene:
    """A frozen BatchNorm was resumed from a checkpoint that was written after its running variance went NaN."""
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[1].eval()
    model.get_buffer("1.running_var")[3] = torch.nan
    batch = {"images": torch.randn(5, 3, 4, 4)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Scene(training_step(lambda: model(batch["images"]).pow(2).mean(), optimizer), model, optimizer, batch)


def _leaf(parameter: object) -> Expected:
    return Expected("state", None, "bad_state", None, parameter=parameter)


FAULTS: tuple[Fault, ...] = (
    Fault("unwritten_weight", "NVIDIA-NeMo/Automodel#1527", unwritten_weight, _leaf("2.weight"), ("float32",)),
    Fault("infinite_bias", "synthetic", infinite_bias, _leaf("0.bias"), ("float16", "inf_first", "far")),
    Fault("garbage_buffer", "huggingface/transformers#45902", garbage_buffer, _leaf("rotary.frequencies"), ("buffer",)),
    Fault("poisoned_first_moment", "synthetic", poisoned_first_moment, _leaf("weight.exp_avg"), ("foreach",)),
    Fault("infinite_momentum", "synthetic", infinite_momentum, _leaf("2.bias.momentum_buffer"), ("inf_first",)),
    Fault(
        "infinite_second_moment",
        "synthetic",
        infinite_second_moment,
        _leaf("weight.exp_avg_sq"),
        ("inf_first", "silent"),
    ),
    Fault("tied_embedding", "synthetic", tied_embedding, _leaf("embed.weight"), ("tied",)),
    Fault("leftover_gradient", "synthetic", leftover_gradient, _leaf(...), ("accumulation",)),
    Fault("frozen_encoder_weight", "synthetic", frozen_encoder_weight, _leaf(...), ("models", "inf_first")),
    Fault(
        "running_variance_in_evaluation",
        "synthetic",
        running_variance_in_evaluation,
        _leaf("1.running_var"),
        ("buffer", "resume"),
    ),
)
