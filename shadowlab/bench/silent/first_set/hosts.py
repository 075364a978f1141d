"""Loops of the first set in accelerate, Lightning, and the Trainer of transformers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.accelerated import accelerator_of
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import Wrapped, rows, train
from shadowlab.bench.silent.nets import Net, Seer, classified, loader, pictures, samples


def schedule_of_micro_batches(watching: Watching) -> None:
    """A scheduler that was not prepared is stepped under accumulate(): four times too fast."""
    accelerator = accelerator_of(4)
    model, steps = Net(), 6
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(samples(192)))
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in batches:
        with accelerator.accumulate(model):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()


def clipped_in_training_step(watching: Watching) -> None:
    """Gradients are clipped at the end of training_step; Lightning calls backward after that."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        loss = classified(self.net, batch)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        return loss

    trainer_of(watching).fit(module_of(Net(), training_step=training_step), loader(samples(64)))


def generator_scolds_the_critic(watching: Watching) -> None:
    """Manual optimization of a GAN: the critic's gradients are not zeroed after the generator's backward."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = nn.Linear(4, 8)
            self.critic = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer_g, optimizer_d = self.optimizers()
        fake = self.net.generator(torch.randn(len(batch["x"]), 4))
        optimizer_g.zero_grad()
        self.manual_backward(F.softplus(-self.net.critic(fake)).mean())
        optimizer_g.step()
        real_loss = F.softplus(-self.net.critic(batch["x"])).mean()
        self.manual_backward(real_loss + F.softplus(self.net.critic(fake.detach())).mean())
        optimizer_d.step()

    def configure_optimizers(self: Any) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.net.generator, self.net.critic)]

    methods = {"training_step": training_step, "configure_optimizers": configure_optimizers}
    module = module_of(Pair(), automatic_optimization=False, **methods)
    trainer_of(watching).fit(module, loader(samples(64)))


def frozen_backbone_back_in_training(watching: Watching) -> None:
    """The backbone is frozen and in evaluation mode, until on_train_epoch_start calls train() for all."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return classified(self.net, batch)

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.SGD(self.net.head.parameters(), lr=0.1)

    def on_train_epoch_start(self: Any) -> None:
        self.train()

    model = Seer()
    model.backbone.requires_grad_(False).eval()
    methods = {"training_step": training_step, "configure_optimizers": configure_optimizers}
    module = module_of(model, on_train_epoch_start=on_train_epoch_start, **methods)
    trainer_of(watching).fit(module, loader(pictures(160)))


def stopped_by_its_success(watching: Watching) -> None:
    """EarlyStopping on the accuracy, in its default mode: min."""
    from lightning.pytorch.callbacks import EarlyStopping

    stopping = EarlyStopping("val_acc", patience=2)
    trainer_of(watching, [stopping], max_epochs=3).fit(
        module_of(Net()), loader(samples(64)), loader(samples(16, seed=1), shuffle=False)
    )


def labels_of_the_wrong_column(watching: Watching) -> None:
    """`labels` is made of a column that every row has as 0."""
    wrong = [{"x": row["x"], "labels": torch.zeros((), dtype=torch.long)} for row in rows()]
    train(watching, Wrapped(), train_rows=wrong)


def loaded_in_bfloat16(watching: Watching) -> None:
    """torch_dtype=bfloat16 when the model was loaded, and no autocast: the trainer's AdamW has no float32 weights."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net().to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x.bfloat16()).float()
            return logits

    train(watching, Wrapped(Cast()), learning_rate=1e-5)


CASES = (
    Case(
        "schedule_of_micro_batches",
        "nvidia-cosmos/cosmos-rl#207",
        schedule_of_micro_batches,
        Expected(0, ("scheduler-count", "scheduler-order"), ("scheduler", "CosineAnnealingLR")),
        host="accelerate",
        tags=("schedule", "accumulation"),
    ),
    Case(
        "clipped_in_training_step",
        "simchowitzlabpublic/nano-world-model#22",
        clipped_in_training_step,
        Expected(0, ("clipping-after-step", "clipping-before-backward"), ("clip_grad_norm_",)),
        host="lightning",
        tags=("clipping",),
    ),
    Case(
        "generator_scolds_the_critic",
        "Lightning-AI/pytorch-lightning#557",
        generator_scolds_the_critic,
        Expected(1, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "net.critic")),
        host="lightning",
        tags=("zero_grad", "gan"),
    ),
    Case(
        "frozen_backbone_back_in_training",
        "pgniewko/gt-pyg#112",
        frozen_backbone_back_in_training,
        Expected(0, ("frozen-parameter-moves",), ("net.backbone.1",)),
        host="lightning",
        tags=("frozen",),
    ),
    Case(
        "stopped_by_its_success",
        "IDSIA/brainstorm#91",
        stopped_by_its_success,
        Expected(0, ("metric-direction",), ("val_acc", "EarlyStopping")),
        host="lightning",
        tags=("metric",),
    ),
    Case(
        "labels_of_the_wrong_column",
        "weiliu89/caffe#374",
        labels_of_the_wrong_column,
        Expected(0, ("labels-constant", "constant-input"), ("labels",)),
        host="trainer",
        tags=("data",),
    ),
    Case(
        "loaded_in_bfloat16",
        "NVIDIA-NeMo/Automodel#3444",
        loaded_in_bfloat16,
        Expected(0, ("half-precision-weights", "parameter-stands-still"), ("net",)),
        host="trainer",
        tags=("precision",),
    ),
)
