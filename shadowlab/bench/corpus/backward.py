"""Faults born in backward where a finite forward has no finite slope: poles and branches that were not taken."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def untaken_exponential() -> Scene:
    """`where` drops the branch that overflows, but its gradient is 0 * inf."""
    torch.manual_seed(0)

    class Elu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, torch.exp(x) - 1)  # origin

    model = nn.Sequential(nn.Linear(8, 6), Elu(), nn.Linear(6, 4))
    nn.init.ones_(model.get_parameter("0.weight"))
    batch = {"x": torch.randn(5, 8)}
    batch["x"][1] = 15.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def untaken_square_root() -> Scene:
    """The square root is only taken above zero, but its gradient is 0/0 where it is not."""
    torch.manual_seed(1)
    model = nn.Linear(8, 6, bias=False)
    batch = {"x": torch.randn(5, 8)}
    batch["x"][4] = 0

    def compute_loss() -> Tensor:
        energy = model(batch["x"]).pow(2).sum(-1)
        root = torch.sqrt(energy)  # origin
        return torch.where(energy > 0, root, 0.0).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def untaken_logarithm() -> Scene:
    """The logarithm of an empty bin is replaced by zero; its gradient is 0/0 all the same."""
    torch.manual_seed(2)

    class Entropy(nn.Module):
        def forward(self, p: Tensor) -> Tensor:
            logarithm = torch.log(p)
            return -torch.where(p > 0, p * logarithm, torch.zeros_like(p)).sum(-1)  # origin

    model = nn.Sequential(nn.Linear(8, 6), nn.Softmax(dim=-1), Entropy())
    batch = {"x": torch.randn(5, 8)}
    batch["x"][0] *= 1e4
    return Scene(training_step(lambda: model(batch["x"]).mean()), model, None, batch)


def distance_of_equal_points() -> Scene:
    """Euclidean distance by hand between a prediction and a target that agree: the root's slope is infinite."""
    torch.manual_seed(3)
    model = nn.Linear(8, 8, bias=False)
    nn.init.eye_(model.weight)
    batch = {"x": torch.randn(5, 8), "target": torch.randn(5, 8)}
    batch["target"][3] = batch["x"][3]

    def compute_loss() -> Tensor:
        squared = (model(batch["x"]) - batch["target"]).pow(2).sum(-1)
        return torch.sqrt(squared).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def gamma_curve_at_black() -> Scene:
    """x ** (1/2.2) has an infinite slope at a black pixel."""
    torch.manual_seed(4)

    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x ** (1 / 2.2)  # origin

    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), Gamma())
    nn.init.constant_(model.get_parameter("0.weight"), 0.2)
    batch = {"images": torch.rand(5, 3, 4, 4) + 0.1, "target": torch.rand(5, 3, 4, 4)}
    batch["images"][2, :, 1, 1] = 0
    step = training_step(lambda: F.mse_loss(model(batch["images"]), batch["target"]))
    return Scene(step, model, None, batch)


def angle_of_equal_vectors() -> Scene:
    """acos is defined at 1, its slope there is not."""
    torch.manual_seed(5)
    model = nn.Linear(4, 4, bias=False)
    nn.init.eye_(model.weight)
    batch = {"normals": torch.full((5, 4), 0.25)}
    batch["normals"][1] = torch.tensor([1.0, 0.0, 0.0, 0.0])

    def compute_loss() -> Tensor:
        cosine = (model(batch["normals"]) * batch["normals"]).sum(-1)
        return torch.acos(cosine).mean()  # origin

    return Scene(training_step(compute_loss), model, None, batch)


def gradient_penalty_at_zero() -> Scene:
    """The penalty takes the norm of a critic's input gradient, which is zero at initialisation."""
    torch.manual_seed(9)
    critic = nn.Linear(8, 1)
    nn.init.zeros_(critic.weight)
    optimizer = torch.optim.AdamW(critic.parameters())
    batch = {"images": torch.randn(5, 8)}

    def compute_loss() -> Tensor:
        images = batch["images"].clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        norm = slope.pow(2).sum(1).sqrt()  # origin
        return (norm - 1).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), critic, optimizer, batch)


def repeated_singular_values() -> Scene:
    """The gradient of singular vectors divides by differences of singular values; those of the identity are equal."""
    torch.manual_seed(14)
    model = nn.Linear(4, 4, bias=False)
    nn.init.eye_(model.weight)
    batch = {"x": torch.randn(5, 4)}

    def compute_loss() -> Tensor:
        left, _, _ = torch.linalg.svd(model.weight)  # origin
        return (batch["x"] @ left).pow(4).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def _born(exception: object, cause: object, samples: object = ..., module: object = ...) -> Expected:
    return Expected("backward", exception, cause, module=module, samples=samples, at_origin=True)


def _pole(sample: int, module: object = ...) -> Expected:
    return _born("divide_by_zero", "out_of_domain", (sample,), module)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "untaken_exponential",
        "pytorch/pytorch#68425",
        untaken_exponential,
        _born("invalid", ..., (1,), "1"),
        ("where", "float32"),
    ),
    Fault(
        "untaken_square_root",
        "pytorch/pytorch#52248",
        untaken_square_root,
        _born("invalid", "out_of_domain", (4,)),
        ("where",),
    ),
    Fault(
        "untaken_logarithm",
        "pytorch/pytorch#18287",
        untaken_logarithm,
        _born("invalid", ..., (0,), "2"),
        ("where",),
    ),
    Fault("distance_of_equal_points", "pytorch/pytorch#2721", distance_of_equal_points, _pole(3), ("inf_first", "far")),
    Fault("gamma_curve_at_black", "synthetic", gamma_curve_at_black, _pole(2, "1"), ("inf_first",)),
    Fault("angle_of_equal_vectors", "synthetic", angle_of_equal_vectors, _pole(1), ("inf_first",)),
    Fault(
        "gradient_penalty_at_zero",
        "synthetic",
        gradient_penalty_at_zero,
        _born("divide_by_zero", "out_of_domain"),
        ("double_backward", "inf_first"),
    ),
    Fault(
        "repeated_singular_values",
        "https://docs.pytorch.org/docs/stable/generated/torch.linalg.svd.html",
        repeated_singular_values,
        _born(..., "out_of_domain"),
    ),
)
