"""Gradient scalers, clipping, schedules and precision."""

import torch
from torch import nn

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, endless, fit, loader, samples


def scaler_stepped_around(watching: Watching) -> None:
    """The loss is scaled, and then the optimizer itself is stepped: gradients are 65,536 times too large."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                scaler.scale(loss).backward()
                optimizer.step()


def unscaled_by_hand(watching: Watching) -> None:
    """Gradients are divided by get_scale() and stepped: no inf is looked for, and the scale never moves."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                scaler.scale(loss).backward()
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= scaler.get_scale()
                optimizer.step()


def clipped_while_scaled(watching: Watching) -> None:
    """clip_grad_norm_ comes before the scaler has unscaled: every gradient is cut down to nothing."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                scaler.scale(loss).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()


def clipped_after_the_step(watching: Watching) -> None:
    """max_grad_norm does nothing: the optimizer has used the gradients already."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def schedule_before_the_step(watching: Watching) -> None:
    """scheduler.step() comes first, and the first value of the schedule is never used."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                scheduler.step()
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def epochs_counted_in_batches(watching: Watching) -> None:
    """A cosine over 3 epochs is stepped after each batch: it is through after three batches, and rises again."""
    model, epochs = Net(), 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    data = loader(samples(32))
    watch = watching(model, optimizer)
    for _ in range(epochs):
        for batch in data:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()
                    scheduler.step()


def warmup_by_whole_numbers(watching: Watching) -> None:
    """The factor of the warm-up is `step // warmup`: 0 until the warm-up is over."""
    model, warmup = Net(), 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step // warmup))
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                scheduler.step()


def pure_bfloat16(watching: Watching) -> None:
    """Weights are bfloat16 under AdamW: an update below half of the last digit of a weight is rounded away."""
    model = Net().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch["x"].bfloat16()).float(), batch["y"])
                loss.backward()
                optimizer.step()


def norm_stuck_at_one(watching: Watching) -> None:
    """Only the norms are bfloat16; they begin at 1, where its digits are coarsest, and stay there."""

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.norm(self.encoder(x).bfloat16()).float())
            return logits

    model = Normed()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0), loader(samples(192)))


CASES = (
    Case(
        "scaler_stepped_around",
        "huggingface/accelerate#357",
        scaler_stepped_around,
        Expected(0, ("scaler-bypassed", "scaler-not-updated"), ("scaler", "optimizer", "step")),
        tags=("scaler",),
    ),
    Case(
        "unscaled_by_hand",
        "pytorch/pytorch#67590",
        unscaled_by_hand,
        Expected(0, ("scaler-not-updated", "scaler-bypassed"), ("scaler", "update", "optimizer", "step")),
        tags=("scaler",),
    ),
    Case(
        "clipped_while_scaled",
        "milesial/Pytorch-UNet#468",
        clipped_while_scaled,
        Expected(0, ("clipping-before-unscaling",), ("clip_grad_norm_", "scaler", "unscale_")),
        tags=("scaler", "clipping"),
    ),
    Case(
        "clipped_after_the_step",
        "awslabs/graphstorm#1366",
        clipped_after_the_step,
        Expected(0, ("clipping-after-step",), ("clip_grad_norm_",)),
        tags=("clipping",),
    ),
    Case(
        "schedule_before_the_step",
        "facebookresearch/ParlAI#2042",
        schedule_before_the_step,
        Expected(0, ("scheduler-order",), ("scheduler", "StepLR")),
        tags=("schedule",),
    ),
    Case(
        "epochs_counted_in_batches",
        "Lornatang/SRGAN-PyTorch#1",
        epochs_counted_in_batches,
        Expected(3, ("scheduler-count", "learning-rate-zero"), ("scheduler", "CosineAnnealingLR", "lr")),
        tags=("schedule",),
    ),
    Case(
        "warmup_by_whole_numbers",
        "facebookresearch/maskrcnn-benchmark#335",
        warmup_by_whole_numbers,
        Expected(1, ("learning-rate-zero",), ("lr", "group 0", "param_groups", "optimizer", "scheduler", "AdamW")),
        tags=("schedule",),
    ),
    Case(
        "pure_bfloat16",
        "areal-project/AReaL#1292",
        pure_bfloat16,
        Expected(0, ("half-precision-weights", "parameter-stands-still"), ("encoder", "head")),
        tags=("precision", "light-diffusion"),
    ),
    Case(
        "norm_stuck_at_one",
        "vllm-project/speculators#765",
        norm_stuck_at_one,
        Expected(0, ("half-precision-weights", "parameter-stands-still"), ("norm",)),
        tags=("precision",),
    ),
)
