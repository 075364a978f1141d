"""NaN that something hides, a gradient scaler or a replacement, and the overflow by which a scaler finds its scale."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def every_third_document() -> Scene:
    """Every third batch holds a document of one length that divides by zero; the scaler halves and goes on, for ever
    smaller: 65536 is 0.001 after 78 steps."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    batches = [{"x": torch.randn(3, 6), "length": torch.full((3, 1), 5.0)} for _ in range(3)]
    batches[2]["length"][1] = 1.0

    def step(batch: dict[str, Tensor]) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            predicted = model(batch["x"])
        spread = predicted.float().pow(2) / (batch["length"] - 1)
        loss = torch.where(batch["length"] > 1, spread, 0.0).sum()  # the forward pass is masked, its gradient is not
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    before = [lambda i=i: step(batches[i % 3]) for i in range(53)]
    return Scene(lambda: step(batches[2]), model, optimizer, batches[2], before)


def scale_grows_and_falls() -> Scene:
    """Benign: the scale doubles every third step until float16 overflows; that step is left out, and so on."""
    torch.manual_seed(1)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    batch = {"x": torch.randn(3, 6)}

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            predicted = model(batch["x"])
        loss = F.mse_loss(predicted.float(), torch.full((3, 4), 40.0))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return Scene(step, model, optimizer, batch, before=[step] * 24)


def missing_readings_replaced() -> Scene:
    """Missing readings are NaN in the target; the loss is masked and cleaned, its slope is 0 * NaN all the same."""
    torch.manual_seed(2)
    model = nn.GRU(2, 1, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"speed": torch.randn(3, 6, 2), "target": torch.randn(3, 6)}
    batch["target"][1, 2:4] = torch.nan

    def step() -> Tensor:
        predicted = model(batch["speed"])[0][..., 0]
        mask = (~batch["target"].isnan()).float()
        mask = mask / mask.mean()
        loss = torch.nan_to_num((predicted - batch["target"]).pow(2) * mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, batch)


def weight_of_a_class_without_samples() -> Scene:
    """Weights of rare labels are negatives over positives, counted before training: a label that never occurs has inf,
    and inf times its zero is NaN."""
    torch.manual_seed(3)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"x": torch.randn(5, 6), "labels": torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 5)}
    counts = torch.tensor([30.0, 12.0, 0.0, 55.0])
    rarity = (100 - counts) / counts

    def compute_loss() -> Tensor:
        logits = model(batch["x"])
        return F.binary_cross_entropy_with_logits(logits, batch["labels"], pos_weight=rarity)  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "every_third_document",
        "facebookresearch/fairseq#1529",
        every_third_document,
        Expected("backward", "invalid", "out_of_domain", samples=(1,)),
        ("hidden", "scaler", "where", "early"),
    ),
    Fault(
        "missing_readings_replaced",
        "WenjieDu/PyPOTS#821",
        missing_readings_replaced,
        Expected("data", None, "bad_data", parameter="target", samples=(1,)),
        ("hidden", "where"),
    ),
    Fault(
        "weight_of_a_class_without_samples",
        "synthetic",
        weight_of_a_class_without_samples,
        Expected("data", None, "bad_data", samples=(), at_origin=True),
        ("advice", "inf_first"),
    ),
    Fault("scale_grows_and_falls", "NVIDIA/apex#864", scale_grows_and_falls, None, ("hidden", "scaler", "float16")),
)
