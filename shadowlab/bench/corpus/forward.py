"""Faults born inside the model's call by what it computes: domains, empty averages, kernels, memory."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


@torch.library.custom_op("faults::leaky_gather", mutates_args=())
def leaky_gather(x: Tensor, index: Tensor) -> Tensor:
    """A gather whose kernel reads past the end for index -1; the stray memory is NaN here."""
    return torch.where((index < 0)[:, None], torch.nan, x[index.clamp(min=0)])


@leaky_gather.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(len(index), x.shape[1])


def _no_gradient(context: object, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient.clone(), None


leaky_gather.register_autograd(_no_gradient)


def faulty_kernel() -> Scene:
    """A custom operator returns NaN from finite operands."""
    torch.manual_seed(0)

    class Gather(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return leaky_gather(x, torch.tensor([0, 1, -1, 3, 4]))  # origin

    model, batch = nn.Sequential(nn.Linear(8, 8), Gather(), nn.Linear(8, 4)), {"x": torch.randn(5, 8)}
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def cancelled_variance() -> Scene:
    """Variance as mean of squares less square of mean: for a large constant row rounding leaves it below zero."""
    torch.manual_seed(1)

    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(-1, keepdim=True)
            variance = (x * x).mean(-1, keepdim=True) - mean * mean
            return (x - mean) / torch.sqrt(variance)  # origin

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = Norm(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    model, batch = Net(), {"x": torch.randn(5, 8)}
    batch["x"][3] = 1000.1
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def cosine_of_zero_vector() -> Scene:
    """Cosine similarity without an eps: one prompt embedding is all zeros."""
    torch.manual_seed(2)

    class Similarity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.norm(dim=-1, keepdim=True)  # origin

    model, batch = nn.Sequential(Similarity(), nn.Linear(8, 4)), {"embedding": torch.randn(5, 8)}
    batch["embedding"][2] = 0
    return Scene(training_step(lambda: model(batch["embedding"]).pow(2).mean()), model, None, batch)


def deviation_of_one_sample() -> Scene:
    """The last batch of an epoch has one sample; its corrected standard deviation is 0/0."""
    torch.manual_seed(3)

    class BatchStatistics(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) / (torch.std(x, dim=0) + 1e-5)  # origin

    model, batch = nn.Sequential(nn.Linear(8, 6), BatchStatistics(), nn.Linear(6, 4)), {"x": torch.randn(1, 8)}
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def empty_mask_pooling() -> Scene:
    """Masked mean over the tokens of each sample; one sample has none."""
    torch.manual_seed(4)

    class MaskedMean(nn.Module):
        def forward(self, x: Tensor, valid: Tensor) -> Tensor:
            return (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)  # origin

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.pool = nn.Linear(8, 6), MaskedMean()

        def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
            tokens = self.embed(x)
            return self.pool(tokens, valid), tokens

    model = Net()
    batch = {"x": torch.randn(5, 4, 8), "valid": torch.ones(5, 4, dtype=torch.bool)}
    batch["valid"][1] = False
    return Scene(training_step(lambda: model(batch["x"], batch["valid"])[0].pow(2).mean()), model, None, batch)


def empty_node_mean() -> Scene:
    """Mean of messages at each node of a graph; one node has no incoming edge."""
    torch.manual_seed(5)

    class NodeMean(nn.Module):
        def forward(self, messages: Tensor, node: Tensor) -> Tensor:
            total = torch.zeros(4, messages.shape[1]).index_add(0, node, messages)
            count = torch.zeros(4).index_add(0, node, torch.ones(len(node)))
            return total / count[:, None]  # origin

    model, batch = NodeMean(), {"edges": torch.randn(6, 8), "node": torch.tensor([0, 0, 1, 3, 3, 1])}
    projection = nn.Linear(8, 8)
    step = training_step(lambda: model(projection(batch["edges"]), batch["node"]).pow(2).mean())
    return Scene(step, [projection, model], None, batch)


def log_of_dead_unit() -> Scene:
    """log of a ReLU that is exactly zero gives -inf; it becomes NaN two modules later, in a normalisation."""
    torch.manual_seed(6)

    class LogEnergy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x.relu())  # origin

    model = nn.Sequential(LogEnergy(), nn.Hardtanh(-torch.inf, 10.0), nn.LayerNorm(8), nn.Linear(8, 4))
    batch = {"x": torch.rand(5, 8) + 0.1}
    batch["x"][4, 2] = -1
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def posterior_deviation_overflow() -> Scene:
    """An encoder returns (mean, log-variance); exp of half the log-variance is beyond float32."""
    torch.manual_seed(7)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_variance = nn.Linear(8, 4), nn.Linear(8, 4)
            nn.init.ones_(self.log_variance.weight)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(x), self.log_variance(x)

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = Encoder(), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            mean, log_variance = self.encoder(x)
            deviation = torch.exp(0.5 * log_variance)  # origin
            return {"sample": self.decoder(mean + deviation * torch.ones_like(mean)), "mean": mean}

    model, batch = Autoencoder(), {"x": torch.randn(5, 8)}
    batch["x"][0] = 30
    step = training_step(lambda: F.mse_loss(model(batch["x"])["sample"], batch["x"]))
    return Scene(step, model, None, batch)


def closed_gate() -> Scene:
    """A gate of zero does not silence an expert that overflowed: 0 * inf is NaN, born one module earlier."""
    torch.manual_seed(8)

    class Expert(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)  # origin

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = nn.ModuleList([nn.Tanh(), Expert()]), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            gates = torch.stack([torch.ones(len(x), 1), (x.amax(1, keepdim=True) < 50).float()])
            return self.head(sum(gate * expert(x) for gate, expert in zip(gates, self.experts, strict=True)))

    model, batch = Mixture(), {"x": torch.randn(5, 8)}
    batch["x"][3] = 100
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def unwritten_memory() -> Scene:
    """A buffer from `torch.empty` is read past what was written; the deterministic fill makes that NaN for sure."""
    torch.manual_seed(9)

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            padded = torch.empty(len(x), 10)  # origin
            padded[:, :8] = x
            return padded

    model, batch = nn.Sequential(Padded(), nn.Linear(10, 4)), {"x": torch.randn(5, 8)}

    def compute_loss() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return model(batch["x"]).pow(2).mean()
        finally:
            torch.use_deterministic_algorithms(False)

    return Scene(training_step(compute_loss), model, None, batch)


def running_variance_overflow() -> Scene:
    """Inputs of 1e21: BatchNorm's output is finite, but its running variance is beyond float32 from now on."""
    torch.manual_seed(10)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    batch = {"x": torch.randn(5, 8)}
    batch["x"][2] = 1e21
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def compute_loss() -> Tensor:
        output = model(batch["x"])  # origin
        return output.pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def written_by_numpy() -> Scene:
    """A feature is computed in NumPy inside forward: no PyTorch operator issues the NaN."""
    torch.manual_seed(11)

    class Histogram(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with np.errstate(all="ignore"):
                return torch.from_numpy(np.sqrt(x.detach().numpy()))

    model, batch = nn.Sequential(Histogram(), nn.Linear(8, 4)), {"x": torch.rand(5, 8)}
    batch["x"][1, 3] = -0.5
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def _born(
    exception: str | None, cause: str, op: object, module: object, samples: object = ..., parameter: object = ...
) -> Expected:
    return Expected("forward", exception, cause, op, module, parameter, samples, at_origin=True)


FAULTS: tuple[Fault, ...] = (
    Fault("faulty_kernel", "THUDM/slime#2201", faulty_kernel, _born(None, "kernel", ..., "1", (2,)), ("simulated",)),
    Fault(
        "cancelled_variance",
        "synthetic",
        cancelled_variance,
        _born("invalid", "out_of_domain", "sqrt", "norm", (3,)),
        ("float32",),
    ),
    Fault(
        "cosine_of_zero_vector",
        "synthetic",
        cosine_of_zero_vector,
        _born("invalid", "out_of_domain", "div", "0", (2,)),
    ),
    Fault(
        "deviation_of_one_sample",
        "synthetic",
        deviation_of_one_sample,
        _born("invalid", "empty_reduction", "std", "1"),
    ),
    Fault(
        "empty_mask_pooling",
        "allenai/OLMo-core#452",
        empty_mask_pooling,
        _born("invalid", "empty_reduction", "div", "pool", (1,)),
        ("mask", "tuple"),
    ),
    Fault(
        "empty_node_mean", "synthetic", empty_node_mean, _born("invalid", "empty_reduction", "div", ...), ("models",)
    ),
    Fault(
        "log_of_dead_unit",
        "synthetic",
        log_of_dead_unit,
        _born("divide_by_zero", "out_of_domain", "log", "0", (4,)),
        ("inf_first", "far"),
    ),
    Fault(
        "posterior_deviation_overflow",
        "synthetic",
        posterior_deviation_overflow,
        _born("overflow", "overflow", "exp", "", (0,)),
        ("inf_first", "tuple", "dict"),
    ),
    Fault(
        "closed_gate",
        "synthetic",
        closed_gate,
        _born("overflow", "overflow", "exp", "experts.1", (3,)),
        ("inf_first", "far"),
    ),
    Fault(
        "unwritten_memory",
        "deepseek-ai/DeepEP#589",
        unwritten_memory,
        _born(None, "uninitialized", ..., "0"),
        ("view",),
    ),
    Fault(
        "running_variance_overflow",
        "synthetic",
        running_variance_overflow,
        _born("overflow", "overflow", ..., "1", parameter="1.running_var"),
        ("buffer", "inf_first", "silent"),
    ),
    Fault("written_by_numpy", "synthetic", written_by_numpy, Expected("forward", None, "unknown"), ("float32",)),
)
