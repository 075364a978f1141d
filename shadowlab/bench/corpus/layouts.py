"""Tensors of other layouts and kinds: quantised optimizer states, sparse matrices, DTensor."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.processes import one_process
from shadowlab.bench.corpus.steps import gradient_of, training_step


class _Codes(Tensor):
    """A state held as 8-bit codes and one scale a block, as the 8-bit optimizers of torchao hold theirs."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "_Codes":
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "_Codes":
        return cls(inner["codes"], inner["scale"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"_Codes({tuple(self.shape)})"

    def exact(self) -> Tensor:
        """float32, (...)."""
        return self.codes.float() * (self.scale / 127)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "detach":
            return cls(args[0].codes.detach(), args[0].scale.detach())
        if name == "clone":
            return cls(args[0].codes.clone(), args[0].scale.clone())
        if name == "copy_":
            into, source = args[:2]
            values = source.exact() if isinstance(source, cls) else source
            into.scale.copy_(values.abs().amax())
            into.codes.copy_((values / into.scale.clamp(min=1e-20) * 127).round().nan_to_num(0.0))
            return into
        plain = [one.exact() if isinstance(one, cls) else one for one in args]
        return func(*plain, **(kwargs or {}))


class _Adam8(torch.optim.Optimizer):
    """Adam with quantised moments."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                state, gradient = self.state[weight], gradient_of(weight)
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in state:
                        state[name] = _Codes(torch.zeros(weight.shape, dtype=torch.int8), torch.zeros(()))
                first = state["exp_avg"].exact().lerp(gradient, 0.1)
                second = state["exp_avg_sq"].exact().lerp(gradient.square(), 0.001)
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)
                weight.sub_(group["lr"] * first / (second.sqrt() + 1e-8))


def _quantised(scale: float) -> Scene:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    optimizer = _Adam8(model.parameters())
    batch = {"x": torch.randn(4, 6)}
    scales = [1.0, scale]
    healthy = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    step = training_step(lambda: scales[-1] * model(batch["x"]).pow(2).mean(), optimizer)
    return Scene(step, model, optimizer, batch, before=(healthy,))


def quantised_moment_overflow() -> Scene:
    """Gradients of 1e20 square beyond float32; the scale of the 8-bit second moment is infinite from then on."""
    return _quantised(1e21)


def healthy_quantised() -> Scene:
    """Benign: 8-bit moments as a subclass of Tensor, in their second step."""
    return _quantised(1.0)


def quantised_scale_is_bad() -> Scene:
    """A checkpoint brought an 8-bit moment whose scale is NaN; its codes are whole numbers and look sound."""
    scene = _quantised(1.0)

    def resume() -> None:
        first = next(iter(scene.optimizer.state.values()))
        first["exp_avg"].scale.fill_(torch.nan)

    scene.between = resume
    return scene


class _Convolution(nn.Module):
    """A graph convolution on a sparse adjacency matrix, scaled by its degrees."""

    adjacency: Tensor

    def __init__(self, edges: list[tuple[int, int]], nodes: int) -> None:
        super().__init__()
        indices = torch.tensor(edges).T
        adjacency = torch.sparse_coo_tensor(indices, torch.ones(len(edges)), (nodes, nodes), check_invariants=True)
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.linear = nn.Linear(4, 3)


def node_without_edges() -> Scene:
    """GCN: the degree of a node that nobody points to is zero, and its inverse root is infinite."""
    torch.manual_seed(1)

    class Convolution(_Convolution):
        def forward(self, x: Tensor) -> Tensor:
            degrees = torch.sparse.sum(self.adjacency, 1).to_dense()
            scale = degrees.pow(-0.5)  # origin
            return scale[:, None] * torch.sparse.mm(self.adjacency, self.linear(x) * scale[:, None])

    model = Convolution([(0, 1), (1, 2), (2, 0), (1, 3), (3, 1)], 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = {"features": torch.randn(5, 4), "labels": torch.tensor([0, 1, 2, 0, 1])}
    step = training_step(lambda: F.cross_entropy(model(batch["features"]), batch["labels"]), optimizer)
    return Scene(step, model, optimizer, batch)


def sparse_buffer_is_bad() -> Scene:
    """The adjacency matrix was normalised when the data was prepared: one stored value is already NaN."""
    torch.manual_seed(2)

    class Convolution(_Convolution):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.adjacency, self.linear(x))

    model = Convolution([(0, 1), (1, 2), (2, 0), (3, 3)], 4)
    model.adjacency._values()[3] = torch.nan
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = {"features": torch.randn(4, 4), "labels": torch.tensor([0, 1, 2, 0])}
    step = training_step(lambda: F.cross_entropy(model(batch["features"]), batch["labels"]), optimizer)
    return Scene(step, model, optimizer, batch)


def ranking_of_embeddings() -> Scene:
    """BPR with sparse gradients: log(sigmoid(x)) by hand of a pair that is ranked far the wrong way round."""
    torch.manual_seed(3)
    model = nn.ModuleDict({name: nn.Embedding(10, 4, sparse=True) for name in ("user", "item")})
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)
    batch = {
        "user": torch.tensor([1, 4, 7]),
        "positive": torch.tensor([0, 2, 5]),
        "negative": torch.tensor([3, 6, 9]),
    }
    with torch.no_grad():
        model.get_parameter("user.weight")[7] = 20.0
        model.get_parameter("item.weight")[9] = 20.0

    def compute_loss() -> Tensor:
        user = model["user"](batch["user"])
        better, worse = ((user * model["item"](batch[name])).sum(-1) for name in ("positive", "negative"))
        return -torch.log(torch.sigmoid(better - worse)).mean()  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def healthy_sparse() -> Scene:
    """Benign: a sparse adjacency as buffer, sparse embedding gradients, SparseAdam."""
    torch.manual_seed(4)

    class Recommender(_Convolution):
        def __init__(self) -> None:
            super().__init__([(0, 1), (1, 0), (2, 2)], 3)
            self.items = nn.Embedding(6, 4, sparse=True)

        def forward(self, items: Tensor) -> Tensor:
            return torch.sparse.mm(self.adjacency, self.linear(self.items(items)))

    model = Recommender()
    dense = torch.optim.Adam(model.linear.parameters(), lr=0.01)
    sparse = torch.optim.SparseAdam(model.items.parameters(), lr=0.01)
    batch = {"items": torch.tensor([0, 3, 4])}

    def step() -> Tensor:
        model.zero_grad()
        loss = model(batch["items"]).pow(2).mean()
        loss.backward()
        dense.step()
        sparse.step()
        return loss

    return Scene(step, model, [dense, sparse], batch, before=(step,))


def _sharded(fails: bool) -> Scene:
    torch.manual_seed(5)
    one_process()

    class Density(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x).relu())[:, 0].log()

    model = Density()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.inner, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"x": 1 + torch.rand(4, 6)}
    if fails:
        with torch.no_grad():
            model.outer.bias.fill_(-0.5)
        batch["x"][2] = -9.0

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch["x"]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return Scene(step, model, optimizer, batch)


def sharded_logarithm() -> Scene:
    """FSDP2's very first step: the logarithm of a negative density, in a model whose parameters are DTensors."""
    return _sharded(fails=True)


def healthy_sharded() -> Scene:
    """Benign: FSDP2's very first step, with clipping and AdamW on DTensors."""
    return _sharded(fails=False)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "quantised_moment_overflow",
        "unslothai/unsloth-zoo#962",
        quantised_moment_overflow,
        Expected("optimizer", "overflow", "overflow"),
        ("subclass", "inf_first"),
    ),
    Fault(
        "quantised_scale_is_bad",
        "bitsandbytes-foundation/bitsandbytes#152",
        quantised_scale_is_bad,
        Expected("state", None, "bad_state", parameter="0.weight.exp_avg.scale"),
        ("subclass", "resume"),
    ),
    Fault("healthy_quantised", "bitsandbytes-foundation/bitsandbytes#152", healthy_quantised, None, ("subclass",)),
    Fault(
        "node_without_edges",
        "stellargraph/stellargraph#1015",
        node_without_edges,
        Expected("forward", "divide_by_zero", ..., "pow", "", at_origin=True),
        ("sparse", "inf_first"),
    ),
    Fault(
        "sparse_buffer_is_bad",
        "BorealisAI/SLAPS-GNN#3",
        sparse_buffer_is_bad,
        Expected("state", None, "bad_state", parameter="adjacency"),
        ("sparse", "buffer"),
    ),
    Fault(
        "ranking_of_embeddings",
        "maciejkula/triplet_recommendations_keras#1",
        ranking_of_embeddings,
        Expected("loss", "divide_by_zero", "underflow", "log", samples=(2,), at_origin=True),
        ("sparse", "inf_first"),
    ),
    Fault("healthy_sparse", "stellargraph/stellargraph#1015", healthy_sparse, None, ("sparse",)),
    Fault(
        "sharded_logarithm",
        "pytorch/torchtitan#1544",
        sharded_logarithm,
        Expected("forward", "invalid", "out_of_domain", "log", "", samples=(2,)),
        ("dtensor",),
    ),
    Fault("healthy_sharded", "pytorch/torchtitan#1544", healthy_sharded, None, ("dtensor",)),
)
