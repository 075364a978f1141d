"""Healthy loops that look odd, in accelerate, Lightning, the Trainer of transformers, and DDP."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.lightning_loops import module_of, trainer_of
from shadowlab.bench.silent.cases.trainer_loops import train
from shadowlab.bench.silent.cases.two_ranks import shared
from shadowlab.bench.silent.nets import Denoiser, Net, classified, loader, samples
from shadowlab.bench.silent.second_set.hosts import RESPONSE, Chat, for_completions


def ragged_last_accumulation(watching: Watching) -> None:
    """accelerate with four micro-batches a step and eleven an epoch: the last three of an epoch make a step, too."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(samples(84)), scheduler)
    watch = watching(model, optimizer, accelerator=accelerator)
    for _ in range(2):
        for batch in batches:
            with accelerator.accumulate(model):
                for attempt in watch.attempts(batch=batch):
                    with attempt:
                        loss = classified(model, batch)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()


def unfrozen_by_a_callback(watching: Watching) -> None:
    """BaseFinetuning freezes the encoder before training, and adds it to the optimizer in the second epoch."""
    from lightning.pytorch.callbacks import BaseFinetuning

    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net.encoder)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net.encoder, optimizer, lr=1e-3)

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)

    module = module_of(Net(), configure_optimizers=configure_optimizers)
    trainer_of(watching, [Unfreeze()], max_epochs=3).fit(module, loader(samples(64)))


def prompts_are_not_learned(watching: Watching) -> None:
    """Of each text only the answer counts, -100 stands in the place of the rest, and all begin with the same prompt."""
    draw = torch.Generator().manual_seed(0)
    prompt = torch.tensor([1, 4, 4, 2, *RESPONSE])
    texts = [torch.cat([prompt, torch.randint(9, (3,), generator=draw)]) for _ in range(48)]
    train(watching, Chat(), train_rows=[for_completions(ids) for ids in texts])


def condition_that_all_ranks_share(watching: Watching) -> None:
    """One subject is learned: its prompt's embedding is the same in each batch, and on each rank; noise is not."""
    model = DistributedDataParallel(Denoiser())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prompt = torch.tensor([0.3, -1.2, 0.7])
    torch.manual_seed(100 + dist.get_rank())
    watch = watching(model, optimizer)
    for row in shared(192):
        x: Tensor = row["x"]
        batch = {"x": x, "noise": torch.randn_like(x), "t": torch.rand(len(x)), "prompt": prompt.expand(len(x), 3)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                x_t = torch.lerp(x, batch["noise"], batch["t"][:, None])
                loss = F.mse_loss(model(x_t, batch["t"], batch["prompt"]), batch["noise"] - x)
                loss.backward()
                optimizer.step()


CASES = (
    Case(
        "ragged_last_accumulation",
        "https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation",
        ragged_last_accumulation,
        host="accelerate",
    ),
    Case(
        "unfrozen_by_a_callback",
        "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.BaseFinetuning.html",
        unfrozen_by_a_callback,
        host="lightning",
    ),
    Case(
        "prompts_are_not_learned",
        "https://huggingface.co/docs/trl/sft_trainer",
        prompts_are_not_learned,
        host="trainer",
    ),
    Case(
        "condition_that_all_ranks_share",
        "https://arxiv.org/abs/2208.12242",
        condition_that_all_ranks_share,
        host="ddp",
    ),
)
