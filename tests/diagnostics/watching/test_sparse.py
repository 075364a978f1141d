"""Sparse buffers, products, gradients and parameters: healthy steps pass as they are, faults are named."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch, explain
from tests.diagnostics.states import bits_of

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("ignore:Sparse"),  # torch: CSR is in beta, invariant checks are off
]
PLACES = torch.tensor([[0, 0, 1, 2, 3], [1, 1, 2, 0, 3]])  # one of them twice


class Graph(nn.Module):
    """A graph convolution: its adjacency is a buffer, in one of the layouts."""

    adjacency: Tensor

    def __init__(self, layout: torch.layout, product: Callable[[Tensor, Tensor], Tensor], *, coalesced: bool = True):
        super().__init__()
        self.linear, self.product, self.factor = nn.Linear(4, 4), product, 1.0
        adjacency = torch.sparse_coo_tensor(PLACES, torch.linspace(0.5, 1, 5), (4, 4))
        if coalesced or layout is not torch.sparse_coo:
            adjacency = adjacency.coalesce()
        if layout is not torch.sparse_coo:
            adjacency = adjacency.to_sparse(layout=layout)
        self.register_buffer("adjacency", adjacency)

    @property
    def stored(self) -> Tensor:
        is_coo = self.adjacency.layout is torch.sparse_coo
        return self.adjacency._values() if is_coo else self.adjacency.values()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.adjacency * self.factor, self.linear(x) * self.factor)


class Rows(nn.Module):
    """An embedding whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.factor = nn.Embedding(9, 4, sparse=True), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.embedding(torch.tensor([1, 2, 2, 5])) * self.factor).abs().sqrt()


def mm(matrix: Tensor, h: Tensor) -> Tensor:
    return torch.sparse.mm(matrix, h)


def operator(matrix: Tensor, h: Tensor) -> Tensor:
    return matrix @ h


def addmm(matrix: Tensor, h: Tensor) -> Tensor:
    return torch.sparse.addmm(h, matrix, h)


def twice(matrix: Tensor, h: Tensor) -> Tensor:
    return torch.sparse.mm(torch.sparse.mm(matrix, matrix), h)


def attention(matrix: Tensor, h: Tensor) -> Tensor:
    scores = torch.sparse_coo_tensor(matrix._indices(), matrix._values() * h.mean(), matrix.shape)
    return torch.sparse.mm(torch.sparse.softmax(scores, 1), h)


ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
GRAPHS = {
    f"{layout} {product.__name__}{'' if coalesced else ' uncoalesced'}": (
        lambda layout=layout, product=product, coalesced=coalesced: Graph(layout, product, coalesced=coalesced),
        ADAMW,
    )
    for layout, products in {
        torch.sparse_coo: [mm, operator, addmm, twice, attention],
        torch.sparse_csr: [mm, operator, addmm],
        torch.sparse_csc: [mm],
    }.items()
    for product in products
    for coalesced in ([True, False] if layout is torch.sparse_coo and product is not addmm else [True])
}
EMBEDDINGS = {f"embedding {kind.__name__}": (Rows, kind) for kind in (torch.optim.SparseAdam, SGD, torch.optim.Adagrad)}
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {**GRAPHS, **EMBEDDINGS}


class Loop:
    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        make, kind = CASES[name]
        self.model = make()
        self.optimizer = kind(self.model.parameters(), lr=1e-2)
        self.x = torch.randn(4, 4)

    def one(self) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.model(self.x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, bytes]:
        tensors = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        states = {f"{i}.{k}": v for i, s in enumerate(self.optimizer.state.values()) for k, v in s.items()}
        both = {k: v for k, v in {**tensors, **states}.items() if isinstance(v, Tensor)}
        return bits_of({name: tensor.to_dense() for name, tensor in both.items()})


@pytest.mark.parametrize("name", CASES)
def test_healthy_steps_are_as_without_any_tool(name: str) -> None:
    plain, watched, explained = Loop(name), Loop(name), Loop(name)
    watch = Watch(watched.model, watched.optimizer, incidents=None, statistics_every=2)
    for _ in range(3):
        plain.one()
        watch.step(watched.one)
        assert explain(explained.one, model=explained.model, optimizer=explained.optimizer) is None
    assert plain.state() == watched.state() == explained.state()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_nan_in_a_sparse_buffer_is_named_and_one_that_the_step_writes_is_put_back(name: str) -> None:
    loop = Loop(name)
    watch = Watch(loop.model, loop.optimizer, incidents=None)
    watch.step(loop.one)
    assert isinstance(loop.model, Graph)
    before, stored = loop.state(), loop.model.stored
    healthy = loop.model.product

    def spoiling(matrix: Tensor, h: Tensor) -> Tensor:
        stored[1] /= stored[1] * 0
        return healthy(matrix, h)

    loop.model.product = spoiling
    with pytest.raises(NonFiniteError) as caught:
        watch.step(loop.one)
    assert caught.value.verdict.op == "div" and caught.value.is_restored, caught.value
    assert loop.state() == before
    loop.model.product = healthy
    stored[1] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        watch.step(loop.one)
    assert (caught.value.verdict.phase, caught.value.verdict.parameter) == ("state", "adjacency")


@pytest.mark.parametrize("name", [name for name in GRAPHS if "softmax" not in name and "attention" not in name])
def test_a_product_beyond_the_range_is_an_overflow(name: str) -> None:
    loop = Loop(name)
    assert isinstance(loop.model, Graph)
    loop.model.factor = 1e25
    verdict = explain(loop.one, model=loop.model, optimizer=loop.optimizer)
    assert verdict is not None
    assert (verdict.exception, verdict.cause, verdict.phase) == ("overflow", "overflow", "forward"), verdict


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_sparse_gradient_that_is_not_finite_never_reaches_the_rows(name: str) -> None:
    loop = Loop(name)
    watch = Watch(loop.model, loop.optimizer, incidents=None)
    watch.step(loop.one)
    assert isinstance(loop.model, Rows)
    loop.model.factor, before = 0.0, loop.state()
    with pytest.raises(NonFiniteError) as caught:
        watch.step(loop.one)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.path[-1]) == ("backward", "gradient embedding.weight"), verdict
    assert loop.state() == before and caught.value.is_restored
