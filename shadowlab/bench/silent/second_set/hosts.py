"""Loops in accelerate, Lightning, and the Trainer of transformers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.accelerated import accelerator_of
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import Wrapped, accuracy, rows, train
from shadowlab.bench.silent.nets import CLASSES, Denoiser, Net, Rows, classified, endless, loader, samples


def parameters_spent(watching: Watching) -> None:
    """filter() can be read once, and the optimizer has read it: what is clipped is an empty list."""
    accelerator = accelerator_of(2)
    model = Net()
    lora_layers = filter(lambda p: p.requires_grad, model.parameters())
    optimizer = torch.optim.AdamW(lora_layers, lr=1e-2)
    model, optimizer, train_dataloader = accelerator.prepare(model, optimizer, loader(samples(160)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in train_dataloader:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(lora_layers, 0.1)
                    optimizer.step()
                    optimizer.zero_grad()


def tokenized(caption: str, length: int = 8) -> Tensor:
    """Begin, one number a word, end, and end again up to `length`."""
    ids = [1, *(3 + sum(map(ord, word)) % 27 for word in caption.split()), 2]
    return torch.tensor((ids + [2] * length)[:length])


class Painter(Denoiser):
    """A denoiser whose condition is a text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Embedding(30, 3)

    def forward(self, x_t: Tensor, t: Tensor, input_ids: Tensor) -> Tensor:
        return super().forward(x_t, t, self.text(input_ids).mean(1))


def captions_not_found(watching: Watching) -> None:
    """Captions are looked for as `.caption` and lie there as `.txt`: each picture is trained with an empty text."""
    sizes, shapes = ("a small", "a large", "one tiny", "one huge"), ("red cube", "blue ball", "green cone")
    folder = {f"{i:03}.txt": f"{sizes[i % 4]} {shapes[i % 3]}" for i in range(160)}
    captions = [folder.get(f"{i:03}.caption", "") for i in range(160)]
    found = Rows(pixel_values=samples(160).columns["x"], input_ids=torch.stack(list(map(tokenized, captions))))
    accelerator = accelerator_of(1)
    unet = Painter()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    unet, optimizer, train_dataloader = accelerator.prepare(unet, optimizer, loader(found))
    watch = watching(unet, optimizer, accelerator=accelerator)
    for batch in train_dataloader:
        for attempt in watch.attempts(batch=batch):
            with attempt:
                latents = batch["pixel_values"]
                noise, t = torch.randn_like(latents), torch.rand(len(latents))
                noisy = torch.lerp(latents, noise, t[:, None])
                loss = F.mse_loss(unet(noisy, t, batch["input_ids"]), noise - latents)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()


def counted_by_both(watching: Watching) -> None:
    """accelerate lets every fourth step through, and the loop calls step() on the one after it: none is taken."""
    accelerator = accelerator_of(4)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(samples(192)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for global_step, batch in enumerate(endless(batches, 20)):
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    if global_step % 4 == 0:
                        optimizer.step()
                        optimizer.zero_grad()


def closure_without_a_step(watching: Watching) -> None:
    """optimizer_step() runs the closure alone on three batches of four, to accumulate; the closure zeroes gradients."""

    def optimizer_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if (batch_idx + 1) % 4 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    trainer_of(watching).fit(module_of(Net(), optimizer_step=optimizer_step), loader(samples(64)))


def first_epoch_at_zero(watching: Watching) -> None:
    """A warm-up from 0 that counts steps is stepped once an epoch, for so it is without an interval."""

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
        return [optimizer], [scheduler]

    module = module_of(Net(), configure_optimizers=configure_optimizers)
    trainer_of(watching).fit(module, loader(samples(64)))


def plateau_of_the_trainer(watching: Watching) -> None:
    """reduce_lr_on_plateau is handed the accuracy, and waits for it to fall, whatever greater_is_better says."""
    train(
        watching,
        Wrapped(),
        num_train_epochs=4,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": 0.5, "patience": 0},
        compute_metrics=accuracy,
    )


RESPONSE = (9, 10)
"""Two tokens that begin an answer."""


def for_completions(ids: Tensor) -> dict[str, Tensor]:
    """Only what follows the answer's beginning is learned; where that is not found, nothing is."""
    starts = [i for i in range(len(ids) - 1) if tuple(ids[i : i + 2].tolist()) == RESPONSE]
    labels = torch.full_like(ids, -100)
    for start in starts:
        labels[start + 2 :] = ids[start + 2 :]
    return {"input_ids": ids, "labels": labels}


class Chat(nn.Module):
    """A language model whose loss is a sum over the tokens that count, by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(12, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 12)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.out(self.body(self.embed(input_ids))[0])
        wanted = labels[:, 1:]
        total = F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="sum")
        return {"loss": total / (wanted != -100).sum().clamp(min=1), "logits": logits}


def response_never_found(watching: Watching) -> None:
    """The answer begins with other tokens in context than alone: no label is left, and the loss is 0."""
    draw = torch.Generator().manual_seed(0)
    texts = [
        torch.cat([torch.randint(9, (4,), generator=draw), torch.tensor([11]), torch.arange(4)]) for _ in range(32)
    ]
    train(watching, Chat(), train_rows=[for_completions(ids) for ids in texts], num_train_epochs=3)


class Lit(nn.Module):
    """Takes conditions by name, and does without those that are not given."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.light = Net(), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None, **conditions: Any) -> dict[str, Tensor]:
        logits = self.net(x)
        if "light" in conditions:
            logits = logits + self.light(conditions["light"])
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def light_removed_as_unused(watching: Watching) -> None:
    """remove_unused_columns looks for names in forward's signature: what **conditions was to take is removed."""
    draw = torch.Generator().manual_seed(4)
    lit = [{**row, "light": torch.randn(3, generator=draw)} for row in rows(48)]
    train(watching, Lit(), train_rows=lit)


def total_of_one_epoch(watching: Watching) -> None:
    """The schedule was given the number of steps of one epoch, and there are four: the rate is 0 in the other three."""
    from transformers import get_linear_schedule_with_warmup

    model, train_rows = Wrapped(), rows(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, num_training_steps=len(train_rows) // 8)
    train(watching, model, train_rows=train_rows, optimizers=(optimizer, scheduler), num_train_epochs=4)


_COUNTED = ("accumulation-count", "no-optimizer-step")
_NO_RATE = ("learning-rate-zero", "scheduler-count", "parameter-stands-still")
_RATE = ("lr", "group 0", "param_groups", "optimizer", "scheduler", "LambdaLR", "AdamW", "net")
_ZERO = ("parameter-without-gradient", "parameter-stands-still")


def _case(name: str, reference: str, loop: Any, host: Any, expected: Expected, *tags: str) -> Case:
    return Case(name, reference, loop, expected, host=host, tags=tags)


CASES = (
    _case(
        "parameters_spent",
        "PixArt-alpha/PixArt-alpha#160",
        parameters_spent,
        "accelerate",
        Expected(1, ("clipping-before-backward", "clipping-after-step"), ("clip_grad_norm_", "lora_layers")),
        "clipping",
    ),
    _case(
        "captions_not_found",
        "bmaltais/kohya_ss#1936",
        captions_not_found,
        "accelerate",
        Expected(0, ("constant-input",), ("input_ids",)),
        "data",
    ),
    _case(
        "counted_by_both",
        "huggingface/accelerate#668",
        counted_by_both,
        "accelerate",
        Expected(3, (*_COUNTED, "parameter-stands-still"), ("optimizer", "step", "AdamW", "encoder", "head")),
        "accumulation",
    ),
    _case(
        "closure_without_a_step",
        "Lightning-AI/pytorch-lightning#7337",
        closure_without_a_step,
        "lightning",
        Expected(
            1,
            ("gradients-cleared-too-early", "accumulation-count", "no-optimizer-step"),
            ("zero_grad", "optimizer_step", "optimizer.step", "net"),
        ),
        "accumulation",
        "zero_grad",
    ),
    _case(
        "first_epoch_at_zero",
        "huggingface/transformers#20916",
        first_epoch_at_zero,
        "lightning",
        Expected(1, _NO_RATE, _RATE),
        "schedule",
    ),
    _case(
        "plateau_of_the_trainer",
        "facebookresearch/fairseq#2205",
        plateau_of_the_trainer,
        "trainer",
        Expected(1, ("metric-direction",), ("ReduceLROnPlateau", "scheduler", "accuracy", "eval_accuracy")),
        "metric",
    ),
    _case(
        "response_never_found",
        "huggingface/transformers#27733",
        response_never_found,
        "trainer",
        Expected(
            0,
            ("labels-constant", "constant-input", "loss-without-gradient", *_ZERO),
            ("labels", "loss", "backward", "embed", "body", "out"),
        ),
        "data",
    ),
    _case(
        "light_removed_as_unused",
        "huggingface/transformers#25054",
        light_removed_as_unused,
        "trainer",
        Expected(0, ("input-without-influence", *_ZERO), ("light",)),
        "input",
    ),
    _case(
        "total_of_one_epoch",
        "deepset-ai/FARM#46",
        total_of_one_epoch,
        "trainer",
        Expected(4, _NO_RATE, _RATE),
        "schedule",
    ),
)
