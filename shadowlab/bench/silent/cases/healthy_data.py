"""Healthy loops that look odd: what is in their batches, their precision, and what they select by."""

import torch
from torch import nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.nets import Net, Rows, Seer, classified, endless, fit, loader, pictures, samples


def policy_gradient(watching: Watching) -> None:
    """REINFORCE: the advantage is detached, a batch may have one action, and rewards are whole numbers."""
    policy, value = nn.Linear(4, 2), nn.Linear(4, 1)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=1e-2)
    random = torch.Generator().manual_seed(0)
    watch = watching([policy, value], optimizer)
    for _ in range(20):
        seen = torch.randn(8, 4, generator=random)
        with torch.no_grad():
            action = torch.distributions.Categorical(logits=policy(seen)).sample()
        batch = {"observation": seen, "action": action, "reward": (action == (seen[:, 0] > 0)).float()}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                expected = value(batch["observation"])[:, 0]
                advantage = (batch["reward"] - expected).detach()
                chosen = policy(batch["observation"]).log_softmax(-1).gather(1, action[:, None])[:, 0]
                policy_loss = -(chosen * advantage).mean()
                value_loss = F.mse_loss(expected, batch["reward"])
                loss = policy_loss + 0.5 * value_loss
                loss.backward()
                optimizer.step()


def nothing_to_pad(watching: Watching) -> None:
    """Sentences of equal length: the attention mask is 1 throughout, batch after batch."""
    embedding = nn.Embedding(20, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    head = nn.Linear(8, 2)
    model = nn.ModuleDict({"embedding": embedding, "layer": layer, "head": head})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(0)
    watch = watching(model, optimizer)
    for _ in range(20):
        ids = torch.randint(20, (4, 6), generator=random)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 0] > 9).long()}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                hidden = layer(embedding(ids), src_key_padding_mask=batch["attention_mask"] == 0)
                loss = F.cross_entropy(head(hidden.mean(1)), batch["labels"])
                loss.backward()
                optimizer.step()


def prices_and_counts(watching: Watching) -> None:
    """A table: prices in the ten thousands, counts, and shares, with a batch norm in front."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    random = torch.Generator().manual_seed(0)
    table = torch.rand(192, 3, generator=random) * torch.tensor([90_000.0, 40.0, 1.0])
    rows = Rows(table=table, target=(table[:, :1] / 90_000 + table[:, 2:]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fit(watching, model, optimizer, loader(rows), lambda net, batch: F.mse_loss(net(batch["table"]), batch["target"]))


def pictures_standardised(watching: Watching) -> None:
    """Pictures minus ImageNet's mean, over its deviation: between -2.2 and 2.7."""
    rows = pictures(160)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rows.columns["picture"] = (rows.columns["picture"] - mean[:, None, None]) / deviation[:, None, None]
    model = Seer()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(rows))


def autocast_to_bfloat16(watching: Watching) -> None:
    """Mixed precision as it should be: float32 weights, bfloat16 in the forward pass, no scaler."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def plateau_of_the_loss(watching: Watching) -> None:
    """ReduceLROnPlateau with a loss and its default mode, and the best weights by the highest accuracy."""
    model, best_acc = Net(), 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    held = samples(32, seed=1).columns
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step % 2 == 1:
            model.eval()
            with torch.no_grad():
                val_loss = classified(model, held).item()
            val_acc = validate(model, [held])
            scheduler.step(val_loss)
            best_acc = max(best_acc, val_acc)
            model.train()


CASES = (
    Case("policy_gradient", "https://github.com/pytorch/examples/tree/main/reinforcement_learning", policy_gradient),
    Case("nothing_to_pad", "https://huggingface.co/docs/transformers/pad_truncation", nothing_to_pad),
    Case("prices_and_counts", "https://scikit-learn.org/stable/datasets/real_world.html", prices_and_counts),
    Case("pictures_standardised", "https://pytorch.org/vision/stable/models.html", pictures_standardised),
    Case("autocast_to_bfloat16", "https://pytorch.org/docs/stable/amp.html", autocast_to_bfloat16),
    Case(
        "plateau_of_the_loss",
        "https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
        plateau_of_the_loss,
    ),
)
