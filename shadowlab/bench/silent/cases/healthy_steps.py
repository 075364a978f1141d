"""Healthy loops that look odd: order of data, schedules, optimizers and steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.nets import Net, Rows, classified, endless, fit, loader, samples


def curriculum(watching: Watching) -> None:
    """Easy classes first: the first batches have one label, and nothing is shuffled."""
    rows = samples(64)
    order = rows.columns["y"].argsort(stable=True)
    ordered = Rows(**{name: column[order] for name, column in rows.columns.items()})
    model = Net()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(ordered, shuffle=False))


def one_batch_overfitted(watching: Watching) -> None:
    """The first thing to try with a new model: one batch, again and again."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = next(iter(loader(samples(16))))
    watch = watching(model, optimizer)
    for _ in range(30):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def warmup_from_zero(watching: Watching) -> None:
    """The first step has a rate of 0, as most warm-ups do."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
                scheduler.step()


def accumulated_by_hand(watching: Watching) -> None:
    """Three micro-batches a step, clipped before the step, and the rest of the epoch is used, too."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = list(loader(samples(176)))
    watch = watching(model, optimizer)
    for index, batch in enumerate(batches):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(model, batch) / 3
                loss.backward()
                if (index + 1) % 3 == 0 or index == len(batches) - 1:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()


def quasi_newton(watching: Watching) -> None:
    """L-BFGS on the whole set: several forwards and backwards a step, and the same data each time."""
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    batch = samples(32).columns
    watch = watching(model, optimizer)
    for _ in range(4):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = classified(model, batch)
            loss.backward()
            return loss

        watch.step(lambda closure=closure: optimizer.step(closure), batch=batch)


def clipped_by_hand(watching: Watching) -> None:
    """Gradients are clipped in place, value by value, without torch's function."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.clamp_(-0.1, 0.1)
                optimizer.step()


def sparse_embedding(watching: Watching) -> None:
    """Rows of words that do not occur have no gradient and stay; their optimizer is one of its own."""
    embedding, head = nn.Embedding(200, 8, sparse=True), nn.Linear(8, 4)
    optimizers = [torch.optim.SparseAdam(embedding.parameters(), lr=1e-2), torch.optim.AdamW(head.parameters())]
    random = torch.Generator().manual_seed(0)
    watch = watching([embedding, head], optimizers)
    for _ in range(20):
        batch = {"words": torch.randint(200, (4, 5), generator=random), "y": torch.arange(4)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss = F.cross_entropy(head(embedding(batch["words"]).mean(1)), batch["y"])
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()


def carried_state(watching: Watching) -> None:
    """Truncated backpropagation through time: the hidden state is detached and goes on to the next step."""
    model, head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 3)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2)
    phase = torch.rand(4, 1, 3, generator=torch.Generator().manual_seed(0)) * 6.28
    signal = torch.sin(torch.arange(201)[None, :, None] * 0.4 + phase)
    hidden = torch.zeros(1, 4, 8)
    watch = watching([model, head], optimizer)
    for start in range(0, 200, 10):
        batch = {"x": signal[:, start : start + 10], "y": signal[:, start + 1 : start + 11]}
        carried = hidden.detach()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                output, hidden = model(batch["x"], carried)
                loss = F.mse_loss(head(output), batch["y"])
                loss.backward()
                optimizer.step()


def monte_carlo_dropout(watching: Watching) -> None:
    """Validation with dropout on purpose: several passes give an uncertainty."""
    model = Net(dropout=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = samples(32, seed=1).columns["x"]
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        model.train()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step % 4 == 3:
            model.eval()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.train()
            with torch.no_grad():
                torch.stack([model(held).softmax(-1) for _ in range(4)]).std(0)


def scaled_and_unscaled(watching: Watching) -> None:
    """A gradient scaler as its manual shows it, whose first steps are skipped until the scale fits."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-24)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                loss = classified(model, batch) * 4
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()


def sharpness_aware(watching: Watching) -> None:
    """SAM: weights climb, a second gradient is taken there, and they are put back before the step."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                classified(model, batch).backward()
                climbs = []
                with torch.no_grad():
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        climbs.append(0.05 * parameter.grad / (parameter.grad.norm() + 1e-6))
                        parameter.add_(climbs[-1])
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                with torch.no_grad():
                    for parameter, climb in zip(model.parameters(), climbs, strict=True):
                        parameter.sub_(climb)
                optimizer.step()


CASES = (
    Case("curriculum", "https://dl.acm.org/doi/10.1145/1553374.1553380", curriculum),
    Case("one_batch_overfitted", "https://karpathy.github.io/2019/04/25/recipe/", one_batch_overfitted),
    Case("warmup_from_zero", "EleutherAI/gpt-neox#1373", warmup_from_zero),
    Case("accumulated_by_hand", "https://kozodoi.me/blog/20210219/gradient-accumulation", accumulated_by_hand),
    Case("quasi_newton", "https://pytorch.org/docs/stable/generated/torch.optim.LBFGS.html", quasi_newton),
    Case("clipped_by_hand", "https://arxiv.org/abs/1211.5063", clipped_by_hand),
    Case("sparse_embedding", "https://pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html", sparse_embedding),
    Case("carried_state", "https://github.com/pytorch/examples/tree/main/word_language_model", carried_state),
    Case("monte_carlo_dropout", "https://arxiv.org/abs/1506.02142", monte_carlo_dropout),
    Case("scaled_and_unscaled", "https://pytorch.org/docs/stable/notes/amp_examples.html", scaled_and_unscaled),
    Case("sharpness_aware", "davda54/sam#32", sharpness_aware),
)
