"""Loops in accelerate, Lightning, and the Trainer of transformers."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.accelerated import accelerator_of
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import Wrapped, rows, train
from shadowlab.bench.silent.nets import CLASSES, Net, Rows, classified, loader, samples


def accumulate_around_the_loop(watching: Watching) -> None:
    """accumulate() counts when it is entered, and is entered once, around the loop and not in it: no step is taken."""
    accelerator = accelerator_of(4)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    model, optimizer, dataloader, scheduler = accelerator.prepare(model, optimizer, loader(samples(160)), scheduler)
    watch = watching(model, optimizer, accelerator=accelerator)
    with accelerator.accumulate(model):
        for batch in dataloader:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()


class Lora(nn.Module):
    """A linear layer, and two of low rank beside it."""

    def __init__(self, base: nn.Linear, r: int = 4) -> None:
        super().__init__()
        self.base = base
        self.lora_A, self.lora_B = (
            nn.Linear(base.in_features, r, bias=False),
            nn.Linear(r, base.out_features, bias=False),
        )
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.lora_B(self.lora_A(x))
        return out


def adapters_cast_with_the_rest(watching: Watching) -> None:
    """The frozen network is cast to bfloat16 to save memory, after its adapters were put in: they are cast, too."""
    accelerator = accelerator_of(1)
    unet = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
    unet.requires_grad_(False)
    unet[0], unet[2] = Lora(unet[0]), Lora(unet[2])  # type: ignore[arg-type]
    unet.to(dtype=torch.bfloat16)
    lora_parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(lora_parameters, lr=1e-5)
    unet, optimizer, batches = accelerator.prepare(unet, optimizer, loader(Rows(x=samples(160).columns["x"])))
    watch = watching(unet, optimizer, accelerator=accelerator)
    for batch in batches:
        with accelerator.accumulate(unet):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    latents = batch["x"].to(torch.bfloat16)
                    noise, t = torch.randn_like(latents), torch.rand(len(latents), 1, dtype=torch.bfloat16)
                    loss = F.mse_loss(unet((1 - t) * latents + t * noise).float(), (noise - latents).float())
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()


class Animator(nn.Module):
    """Two frames in noise, and a first one that is known -> velocity of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(13, 48), nn.SiLU(), nn.Linear(48, 8))

    def forward(self, noisy: Tensor, image: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = self.body(torch.cat([noisy, image, t[:, None]], 1))
        return velocity


def condition_made_of_noise(watching: Watching) -> None:
    """The known frame lends its shape alone: what the network sees in its place is noise."""
    accelerator = accelerator_of(1)
    transformer = Animator()
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-3)
    videos = samples(160).columns["x"]
    batches = loader(Rows(video=videos, image=videos[:, :4].clone()))
    transformer, optimizer, batches = accelerator.prepare(transformer, optimizer, batches)

    def encode(batch: Any) -> tuple[Tensor, Tensor]:
        image = batch["image"]
        image_noise_sigma = torch.normal(-3.0, 0.5, (len(image), 1)).exp()
        noisy_image = torch.randn_like(image) * image_noise_sigma
        return 0.7 * batch["video"], 0.7 * noisy_image

    watch = watching(transformer, optimizer, accelerator=accelerator)
    for batch in batches:
        for attempt in watch.attempts(batch=batch):
            with attempt:
                latents, image_latents = encode(batch)
                noise, t = torch.randn_like(latents), torch.rand(len(latents))
                noisy = torch.lerp(latents, noise, t[:, None])
                loss = F.mse_loss(transformer(noisy, image_latents, t), noise - latents)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(transformer.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


def scheduled_and_never_stepped(watching: Watching) -> None:
    """Backward, the schedule's step, zero_grad(), and no step of the optimizer."""
    accelerator = accelerator_of(1)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, total_iters=8)
    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, loader(samples(160)), lr_scheduler
    )
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in dataloader:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    lr_scheduler.step()
                    optimizer.zero_grad()


def decay_left_to_lightning(watching: Watching) -> None:
    """Under manual optimization Lightning steps no schedule, and training_step() does not, either."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optim = self.optimizers()
        loss = classified(self.net, batch)
        optim.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optim, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optim.step()
        self.log("train_loss", loss)

    def configure_optimizers(self: Any) -> Any:
        optim = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, T_max=16)
        return [optim], [{"scheduler": scheduler, "interval": "step"}]

    methods = {"training_step": training_step, "configure_optimizers": configure_optimizers}
    trainer_of(watching).fit(module_of(Net(), automatic_optimization=False, **methods), loader(samples(64)))


def plateau_of_a_rising_loss(watching: Watching) -> None:
    """ReduceLROnPlateau was made for the area under a curve, mode="max", and now watches the loss."""

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.8, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    module = module_of(Net(), configure_optimizers=configure_optimizers)
    trainer = trainer_of(watching, max_epochs=8, num_sanity_val_steps=0)
    trainer.fit(module, loader(samples(16)), loader(samples(16, seed=1), shuffle=False))


def letter_missing_from_requires_grad(watching: Watching) -> None:
    """The encoder is frozen by `require_grad = False`, which is a new attribute, and freezes nothing."""
    net: Any = Net()
    for param in net.encoder.parameters():
        param.require_grad = False
    train(watching, Wrapped(net), train_rows=rows(64), weight_decay=0.01, lr_scheduler_type="constant")


class Ages(nn.Module):
    """Regression under a balanced squared error: each target of the batch is compared to every prediction."""

    def __init__(self, noise_sigma: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.noise_sigma = nn.Parameter(torch.tensor(noise_sigma))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        predicted = self.net(x)
        noise_var = self.noise_sigma.square()
        logits = -(predicted - labels[None]).square() / (2 * noise_var)
        loss = F.cross_entropy(logits, torch.arange(len(x))) * 2 * noise_var.detach()
        return {"loss": loss, "logits": predicted}


def batch_of_one_to_compare(watching: Watching) -> None:
    """A loss that compares samples within their batch, and a batch of one: it is 0, and so are all gradients."""
    x = samples(16).columns["x"]
    ages = [{"x": row, "labels": row.mean() * 3} for row in x]
    train(watching, Ages(), train_rows=ages, per_device_train_batch_size=1, num_train_epochs=1)


class Reader(nn.Module):
    """Tokens (B, 6) -> logits, by attention over those that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(20, 16), nn.Linear(16, 1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.embed(input_ids))
        scores = self.score(hidden)[..., 0]
        scores.masked_fill(attention_mask == 0, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        logits = self.classifier((weights[..., None] * hidden).sum(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def mask_filled_into_nothing(watching: Watching) -> None:
    """masked_fill() without its underscore gives a new tensor that nobody takes: padding is read like words."""
    draw = torch.Generator().manual_seed(0)
    texts = []
    for _ in range(64):
        length, label = int(torch.randint(2, 7, (), generator=draw)), int(torch.randint(CLASSES, (), generator=draw))
        ids = torch.randint(1 + 4 * label, 5 + 4 * label, (6,), generator=draw)
        mask = (torch.arange(6) < length).long()
        texts.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(label)})
    train(watching, Reader(), train_rows=texts)


_ALL = ("encoder", "head")
_ZERO = ("parameter-without-gradient", "parameter-stands-still")


def _case(name: str, reference: str, loop: Any, host: Any, expected: Expected, *tags: str) -> Case:
    return Case(name, reference, loop, expected, host=host, tags=tags)


CASES = (
    _case(
        "accumulate_around_the_loop",
        "huggingface/accelerate#1211",
        accumulate_around_the_loop,
        "accelerate",
        Expected(
            3,
            ("no-optimizer-step", "accumulation-count", "parameter-stands-still"),
            ("optimizer", "step", "accumulate", "AdamW", *_ALL),
        ),
        "accumulation",
        "step",
    ),
    _case(
        "adapters_cast_with_the_rest",
        "verl-project/verl-omni#73",
        adapters_cast_with_the_rest,
        "accelerate",
        Expected(0, ("half-precision-weights", "parameter-stands-still"), ("lora_A", "lora_B")),
        "precision",
    ),
    _case(
        "condition_made_of_noise",
        "zai-org/CogVideo#405",
        condition_made_of_noise,
        "accelerate",
        Expected(0, ("input-without-influence",), ("image",)),
        "input",
    ),
    _case(
        "scheduled_and_never_stepped",
        "tedlasai/learn2refocus#5",
        scheduled_and_never_stepped,
        "accelerate",
        Expected(
            0,
            ("no-optimizer-step", "gradients-cleared-too-early", "scheduler-order", "parameter-stands-still"),
            ("optimizer", "step", "AdamW", "zero_grad", "scheduler", "lr_scheduler", "LinearLR", *_ALL),
        ),
        "step",
    ),
    _case(
        "decay_left_to_lightning",
        "voicepaw/so-vits-svc-fork#291",
        decay_left_to_lightning,
        "lightning",
        Expected(1, ("scheduler-count",), ("scheduler", "CosineAnnealingLR", "lr", "lr_schedulers")),
        "schedule",
    ),
    _case(
        "plateau_of_a_rising_loss",
        "FunctionLab/selene#115",
        plateau_of_a_rising_loss,
        "lightning",
        Expected(0, ("metric-direction",), ("ReduceLROnPlateau", "scheduler", "val_loss")),
        "metric",
    ),
    _case(
        "letter_missing_from_requires_grad",
        "udacity/deep-learning-v2-pytorch#12",
        letter_missing_from_requires_grad,
        "trainer",
        Expected(0, ("frozen-parameter-moves",), ("net.encoder",)),
        "frozen",
    ),
    _case(
        "batch_of_one_to_compare",
        "jiawei-ren/BalancedMSE#19",
        batch_of_one_to_compare,
        "trainer",
        Expected(
            0,
            ("loss-without-gradient", "input-without-influence", *_ZERO),
            ("loss", "backward", "net", "noise_sigma", "x", "labels"),
        ),
        "graph",
    ),
    _case(
        "mask_filled_into_nothing",
        "lucidrains/flamingo-pytorch#10",
        mask_filled_into_nothing,
        "trainer",
        Expected(0, ("input-without-influence",), ("attention_mask",)),
        "input",
    ),
)
