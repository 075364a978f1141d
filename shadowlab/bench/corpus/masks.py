"""Benign steps: infinities and NaN that mask, pad or initialise, as their authors meant them to. No verdict."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shadowlab.bench.corpus.case import Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def additive_mask() -> Scene:
    """An additive -inf mask that leaves every row at least one key."""
    torch.manual_seed(0)
    model, batch = nn.MultiheadAttention(8, 2, batch_first=True), {"x": torch.randn(5, 6, 8)}
    causal = torch.full((6, 6), -torch.inf).triu(1)
    optimizer = torch.optim.AdamW(model.parameters())
    step = training_step(
        lambda: model(batch["x"], batch["x"], batch["x"], attn_mask=causal)[0].pow(2).mean(), optimizer
    )
    return Scene(step, model, optimizer, batch)


def masked_fill_mask() -> Scene:
    """Scores filled with -inf by hand, under bfloat16 autocast."""
    torch.manual_seed(1)

    class Attention(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            scores = (self.query(x) @ x.transpose(1, 2)).masked_fill(self.mask.isinf(), -torch.inf)
            return scores.softmax(-1) @ self.value(x)

    model, batch = Attention(), {"x": torch.randn(5, 6, 8)}

    def compute_loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(batch["x"])
        return output.float().pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def fused_attention_mask() -> Scene:
    """Boolean mask of fused attention; every row keeps a key."""
    torch.manual_seed(2)
    model, batch = nn.Linear(8, 8), {"x": torch.randn(5, 2, 6, 8), "valid": torch.rand(5, 1, 1, 6) > 0.5}
    batch["valid"][..., 0] = True

    def compute_loss() -> Tensor:
        x = model(batch["x"])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=batch["valid"]).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def fused_attention_masked_row() -> Scene:
    """A fully masked row of fused attention, which PyTorch defines as zero."""
    torch.manual_seed(3)
    model, batch = nn.Linear(8, 8), {"x": torch.randn(5, 2, 6, 8), "valid": torch.ones(5, 1, 1, 6, dtype=torch.bool)}
    batch["valid"][2] = False

    def compute_loss() -> Tensor:
        x = model(batch["x"])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=batch["valid"]).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def discarded_padding() -> Scene:
    """Padding holds NaN, and `where` puts zeros there before anything is computed with it."""
    torch.manual_seed(4)
    model = nn.Linear(8, 4)
    batch = {"x": torch.randn(5, 6, 8), "valid": torch.ones(5, 6, 1, dtype=torch.bool)}
    batch["valid"][1, 4:] = False
    batch["x"][1, 4:] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def compute_loss() -> Tensor:
        return model(torch.where(batch["valid"], batch["x"], 0.0)).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def unread_rows() -> Scene:
    """A table holds NaN in rows that no index of this batch selects."""
    torch.manual_seed(5)
    model, batch = nn.Linear(8, 4), {"table": torch.randn(7, 8), "index": torch.tensor([0, 2, 4])}
    batch["table"][5] = torch.nan
    step = training_step(lambda: model(batch["table"][batch["index"]]).pow(2).mean())
    return Scene(step, model, None, batch)


def running_minimum() -> Scene:
    """Minimum and maximum observers start at +inf and -inf and take their first values in this step."""
    torch.manual_seed(6)

    class Observer(nn.Module):
        low: Tensor
        high: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.full((8,), torch.inf))
            self.register_buffer("high", torch.full((8,), -torch.inf))

        def forward(self, x: Tensor) -> Tensor:
            self.low.copy_(torch.minimum(self.low, x.detach().amin(0)))
            self.high.copy_(torch.maximum(self.high, x.detach().amax(0)))
            return (x - self.low) / (self.high - self.low)

    model, batch = nn.Sequential(Observer(), nn.Linear(8, 4)), {"x": torch.randn(5, 8)}
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


def padded_maximum() -> Scene:
    """Max-pooling pads with -inf, in the operator and by hand."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 2, 1))
    batch = {"images": torch.randn(5, 3, 6, 6)}

    def compute_loss() -> Tensor:
        padded = F.pad(model(batch["images"]), (1, 1, 1, 1), value=-torch.inf)
        return F.max_pool2d(padded, 3).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def written_memory() -> Scene:
    """Memory from `torch.empty`, filled with NaN by deterministic mode, and overwritten before it is read."""
    torch.manual_seed(8)

    class Concatenate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            joined = torch.empty(len(x), 10)
            joined[:, :8] = x
            joined[:, 8:] = 1.0
            return joined

    model, batch = nn.Sequential(Concatenate(), nn.Linear(10, 4)), {"x": torch.randn(5, 8)}

    def compute_loss() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return model(batch["x"]).pow(2).mean()
        finally:
            torch.use_deterministic_algorithms(False)

    return Scene(training_step(compute_loss), model, None, batch)


def partial_log_sum() -> Scene:
    """logsumexp and log_softmax over logits of which some are -inf."""
    torch.manual_seed(11)
    model = nn.Linear(8, 6)
    batch = {"x": torch.randn(5, 8), "labels": torch.tensor([0, 1, 2, 1, 0])}

    def compute_loss() -> Tensor:
        logits = model(batch["x"]).masked_fill(torch.arange(6) > 3, -torch.inf)
        return logits.logsumexp(-1).mean() + F.cross_entropy(logits, batch["labels"])

    return Scene(training_step(compute_loss), model, None, batch)


def infinite_buffers() -> Scene:
    """A causal mask and a temperature limit are infinite buffers, one used and one not."""
    torch.manual_seed(14)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1), persistent=False)
            self.register_buffer("limit", torch.tensor(torch.inf))

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x) @ x.transpose(1, 2) + self.mask).softmax(-1)

    model, batch = Scores(), {"x": torch.randn(5, 6, 8)}
    optimizer = torch.optim.AdamW(model.parameters())
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer), model, optimizer, batch)


def open_bounds() -> Scene:
    """clamp and hardtanh with infinite bounds, and a distance limit of inf in the batch."""
    torch.manual_seed(15)
    model = nn.Sequential(nn.Linear(8, 4), nn.Hardtanh(-torch.inf, torch.inf))
    batch = {"x": torch.randn(5, 8), "limit": torch.full((5, 1), torch.inf)}
    step = training_step(lambda: torch.minimum(model(batch["x"]).clamp(max=torch.inf), batch["limit"]).pow(2).mean())
    return Scene(step, model, None, batch)


def checkpointed_mask() -> Scene:
    """Checkpointed blocks with -inf inside, reentrant and not."""
    torch.manual_seed(17)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    model, batch = nn.Sequential(first, second), {"x": torch.randn(5, 6, 8)}
    mask = torch.full((6, 8), -torch.inf).triu(2)

    def compute_loss() -> Tensor:
        hidden = checkpoint(lambda x: (first(x) + mask).softmax(-1), batch["x"], use_reentrant=False)
        return checkpoint(lambda x: (second(x) + mask).softmax(-1), hidden, use_reentrant=True).pow(2).mean()

    return Scene(training_step(compute_loss), model, None, batch)


def in_place_mask() -> Scene:
    """In-place operators through views: -inf is written, used and overwritten in the same memory."""
    torch.manual_seed(18)

    class TopTwo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            work = x.detach().clone()
            first = work.argmax(-1, keepdim=True)
            work.scatter_(-1, first, -torch.inf)
            second = work.argmax(-1, keepdim=True)
            work.zero_().scatter_(-1, first, 1.0).scatter_(-1, second, 1.0)
            return x.mul_(work)

    model, batch = nn.Sequential(nn.Linear(8, 6), TopTwo(), nn.Linear(6, 4)), {"x": torch.randn(5, 8)}
    return Scene(training_step(lambda: model(batch["x"]).pow(2).mean()), model, None, batch)


FAULTS: tuple[Fault, ...] = (
    Fault("additive_mask", "synthetic", additive_mask, None, ("mask",)),
    Fault("masked_fill_mask", "synthetic", masked_fill_mask, None, ("mask", "autocast", "bfloat16", "buffer")),
    Fault("fused_attention_mask", "synthetic", fused_attention_mask, None, ("mask",)),
    Fault("fused_attention_masked_row", "synthetic", fused_attention_masked_row, None, ("mask",)),
    Fault("discarded_padding", "synthetic", discarded_padding, None, ("where",)),
    Fault("unread_rows", "synthetic", unread_rows, None),
    Fault("running_minimum", "synthetic", running_minimum, None, ("buffer",)),
    Fault("padded_maximum", "synthetic", padded_maximum, None),
    Fault("written_memory", "deepseek-ai/DeepEP#589", written_memory, None, ("view",)),
    Fault("partial_log_sum", "synthetic", partial_log_sum, None),
    Fault("infinite_buffers", "synthetic", infinite_buffers, None, ("buffer", "mask")),
    Fault("open_bounds", "synthetic", open_bounds, None),
    Fault("checkpointed_mask", "synthetic", checkpointed_mask, None, ("checkpoint", "mask")),
    Fault("in_place_mask", "synthetic", in_place_mask, None, ("in_place",)),
)
