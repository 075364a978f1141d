"""Faults born inside a library's function, an optimizer's formula or a hook: the user's line is the one to name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import gradient_of, training_step


def divergence_of_certainty() -> Scene:
    """A variational encoder is certain of one sequence: kl_divergence takes the logarithm of its zero deviation."""
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.deviation = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(x), F.relu(self.deviation(x))

    model = Encoder()
    nn.init.ones_(model.deviation.weight)
    nn.init.zeros_(model.deviation.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch: dict[str, Any] = {"frames": torch.rand(4, 6) + 0.1, "id": ["s01", "s02", "s03", "s04"]}
    batch["frames"][3] *= -1

    def compute_loss() -> Tensor:
        mean, deviation = model(batch["frames"])
        posterior = torch.distributions.Normal(mean, deviation, validate_args=False)
        prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        return torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def padded_document() -> Scene:
    """torch's MultiheadAttention pools a document whose sentences are padding alone: a softmax over -inf only."""
    torch.manual_seed(1)

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, sentences: Tensor, padding: Tensor) -> Tensor:
            query = self.query.expand(len(sentences), 1, 8)
            pooled, _ = self.attention(query, sentences, sentences, key_padding_mask=padding)  # origin
            return self.head(pooled[:, 0])

    model = Pooling()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"sentences": torch.randn(4, 5, 8), "padding": torch.zeros(4, 5, dtype=torch.bool)}
    batch["padding"][:, 3:] = True
    batch["padding"][2] = True
    step = training_step(lambda: model(batch["sentences"], batch["padding"]).pow(2).mean(), optimizer)
    return Scene(step, model, optimizer, batch)


def healthy_padded_sentence() -> Scene:
    """Benign: a Transformer encoder with a sentence of padding alone, whose attention torch defines as zero."""
    torch.manual_seed(1)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 8, padding_idx=0)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.encoder(self.words(words), src_key_padding_mask=words == 0))

    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"input_ids": torch.randint(1, 11, (4, 5)), "labels": torch.randint(3, (4, 5))}
    batch["input_ids"][1:, 3:] = 0
    batch["input_ids"][2] = 0
    batch["labels"][batch["input_ids"] == 0] = -100
    step = training_step(
        lambda: F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()), optimizer
    )
    return Scene(step, model, optimizer, batch)


def weight_norm_of_nothing() -> Scene:
    """torch's weight_norm on an output layer that starts from zero: v / |v| is 0/0 before anything was learnt."""
    torch.manual_seed(2)

    class Vocoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, out = nn.Linear(6, 6), nn.Linear(6, 2)
            nn.init.zeros_(out.weight)
            self.out = nn.utils.parametrizations.weight_norm(out)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.body(x).tanh())  # origin

    model = Vocoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = {"mel": torch.randn(4, 6)}
    return Scene(training_step(lambda: model(batch["mel"]).abs().mean(), optimizer), model, optimizer, batch)


def normalised_in_a_hook() -> Scene:
    """A hook scales the gradient of a feature map to unit length; where nothing flows back, that is 0/0."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(4, 6), "weight": torch.tensor([1.0, 0.0, 1.0, 1.0])}

    def compute_loss() -> Tensor:
        features = model[1](model[0](batch["x"]))
        features.register_hook(lambda gradient: gradient / gradient.norm(dim=-1, keepdim=True))  # origin
        return (model[2](features)[:, 0].pow(2) * batch["weight"]).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def adversarial_direction() -> Scene:
    """Adversarial training normalises the gradient by the input, which is zero where the network is saturated."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.init.constant_(model.get_parameter("0.weight"), 0.5)
    batch = {"images": torch.rand(4, 6), "labels": torch.tensor([0, 1, 2, 0])}
    batch["images"][3] = -2.0

    def step() -> Tensor:
        images = batch["images"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), batch["labels"]), images)
        attacked = batch["images"] + 0.5 * gradient / gradient.norm(dim=1, keepdim=True)  # origin
        optimizer.zero_grad()
        loss = F.cross_entropy(model(attacked), batch["labels"])
        loss.backward()
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


class _Muon(torch.optim.Optimizer):
    """A matrix optimizer as people write one: momentum, scaled to the norm that it had before it was evened out."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.mul_(group["momentum"]).add_(gradient_of(weight))
                even = momentum / (momentum.pow(2).mean(-1, keepdim=True).sqrt() + 1e-10)
                ratio = momentum.norm() / even.norm()
                weight.sub_(even * ratio, alpha=group["lr"])


def matrix_without_gradient() -> Scene:
    """NorMuon: an output projection that starts from zero lets no gradient through, so that a ratio of norms is 0/0."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.SiLU(), nn.Linear(6, 2, bias=False))
    nn.init.zeros_(model.get_parameter("2.weight"))
    optimizer = _Muon(model.parameters(), lr=0.02)
    batch = {"x": torch.randn(4, 6), "y": torch.randn(4, 2)}
    step = training_step(lambda: F.mse_loss(model(batch["x"]), batch["y"]), optimizer)
    return Scene(step, model, optimizer, batch)


def lost_step_counter() -> Scene:
    """A resumed Adam lost its step counter: the counter is back at -1, and the bias correction divides by 1 - 1."""
    torch.manual_seed(6)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batch = {"x": torch.randn(4, 6)}
    step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)

    def resume() -> None:
        for state in optimizer.state.values():
            state["step"].fill_(-1)

    return Scene(step, model, optimizer, batch, before=(step,), between=resume)


def half_adam_of_many() -> Scene:
    """Adam on float16 weights by foreach operators: what divides by zero is called by its name in the formula."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    batch = {"x": torch.randn(4, 6).half()}
    return Scene(
        training_step(lambda: 1e-3 * model(batch["x"]).float().pow(2).mean(), optimizer), model, optimizer, batch
    )


def inverse_filter() -> Scene:
    """A filter's inverse 1 / H(z) has a pole where the learnt response is zero: complex division by zero."""
    torch.manual_seed(8)

    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.response = nn.Parameter(torch.randn(5, dtype=torch.complex64))
            with torch.no_grad():
                self.response[2] = 0

        def forward(self, wave: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(wave)
            return torch.fft.irfft(spectrum * (1 / self.response))  # origin

    model = Inverse()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"wave": torch.randn(3, 8)}
    return Scene(training_step(lambda: model(batch["wave"]).pow(2).mean(), optimizer), model, optimizer, batch)


def attention_of_absurd_scale() -> Scene:
    """Queries and keys of 1e20: their product is beyond float32 inside fused attention, whose operands are finite."""
    torch.manual_seed(9)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # origin

    model = nn.Sequential(Attention(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"tokens": torch.randn(3, 5, 8)}
    batch["tokens"][1] *= 1e20
    return Scene(training_step(lambda: model(batch["tokens"]).abs().mean(), optimizer), model, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "divergence_of_certainty",
        "emited/VariationalRecurrentNeuralNetwork#2",
        divergence_of_certainty,
        Expected("loss", "divide_by_zero", "out_of_domain", "log", samples=(3,), sample_ids=("s04",), at_origin=True),
        ("library", "inf_first"),
    ),
    Fault(
        "padded_document",
        "pytorch/pytorch#40932",
        padded_document,
        Expected("forward", "invalid", "masked_row", samples=(2,), at_origin=True),
        ("library", "mask"),
    ),
    Fault(
        "weight_norm_of_nothing",
        "pytorch/pytorch#19126",
        weight_norm_of_nothing,
        Expected("forward", "invalid", "out_of_domain", samples=(), at_origin=True),
        ("library", "kernel?"),
    ),
    Fault(
        "normalised_in_a_hook",
        "ddkang/advex-uar#7",
        normalised_in_a_hook,
        Expected("backward", "invalid", "out_of_domain", "div", samples=(1,), at_origin=True),
        ("hook",),
    ),
    Fault(
        "adversarial_direction",
        "ddkang/advex-uar#7",
        adversarial_direction,
        Expected(..., "invalid", "out_of_domain", "div", samples=(3,), at_origin=True),
        ("double_backward",),
    ),
    Fault(
        "matrix_without_gradient",
        "microsoft/dion#24",
        matrix_without_gradient,
        Expected("optimizer", "invalid", "out_of_domain", "div", parameter="0.weight", says=("even",)),
        ("operands",),
    ),
    Fault(
        "lost_step_counter",
        "TrenTorch/TrenTorch#187",
        lost_step_counter,
        Expected("optimizer", ..., ..., parameter="weight", says=("step counter",)),
        ("operands", "resume"),
    ),
    Fault(
        "half_adam_of_many",
        "pytorch/pytorch#147437",
        half_adam_of_many,
        Expected(
            "optimizer", ..., "underflow", parameter="0.weight", says=("exp_avg", "denominator", "exp_avg_sq", "eps")
        ),
        ("operands", "float16", "foreach"),
    ),
    Fault(
        "inverse_filter",
        "pytorch/pytorch#90447",
        inverse_filter,
        Expected("forward", "divide_by_zero", "out_of_domain", module="", samples=(), at_origin=True),
        ("complex",),
    ),
    Fault(
        "attention_of_absurd_scale",
        "pytorch/pytorch#125674",
        attention_of_absurd_scale,
        Expected("forward", "overflow", "overflow", module="0", samples=(1,), at_origin=True),
        ("kernel?", "inf_first"),
    ),
    Fault("healthy_padded_sentence", "pytorch/pytorch#24816", healthy_padded_sentence, None, ("library", "mask")),
)
