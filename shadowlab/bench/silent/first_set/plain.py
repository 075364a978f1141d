"""Loops of the first set without a library around them: ownership, graph, clearing."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, endless, fit, loader, samples


def zeroed_once_an_epoch(watching: Watching) -> None:
    """zero_grad() stands in front of the inner loop instead of in it."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = loader(samples(192))
    watch = watching(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        for batch in data:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()


def averages_are_optimized(watching: Watching) -> None:
    """The optimizer was given the parameters of the averaged copy; the model that is run never changes."""
    model = Net()
    ema_model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(ema_model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


class Speaker(nn.Module):
    """Next token of (B, N) tokens."""

    def __init__(self, vocabulary: int = 10) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, 8), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 12)

    def resize(self, vocabulary: int) -> None:
        old = self.embedding
        self.embedding = nn.Embedding(vocabulary, 8)
        with torch.no_grad():
            self.embedding.weight[: len(old.weight)] = old.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(self.embedding(tokens))[0])
        return logits


def vocabulary_grows_late(watching: Watching) -> None:
    """New tokens are added after the optimizer was made: the embedding that is used is not the one that is trained."""
    model = Speaker()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.resize(12)
    random = torch.Generator().manual_seed(2)
    watch = watching(model, optimizer)
    for _ in range(20):
        input_ids = torch.randint(12, (4, 7), generator=random)
        for attempt in watch.attempts(batch={"input_ids": input_ids}):
            with attempt:
                optimizer.zero_grad()
                logits = model(input_ids[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())
                loss.backward()
                optimizer.step()


def unfrozen_for_nobody(watching: Watching) -> None:
    """The encoder is unfrozen after a while; the optimizer was made of what trained at the beginning."""
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-2)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        if step == 3:
            for parameter in model.encoder.parameters():
                parameter.requires_grad = True
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


class Quantised(nn.Module):
    """An autoencoder with a codebook (6, 4), and no straight-through estimator around the look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codebook, self.decoder = nn.Linear(8, 4), nn.Embedding(6, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        nearest = torch.cdist(z, self.codebook.weight).argmin(-1)
        codes = self.codebook(nearest)
        return self.decoder(codes), z, codes


def no_straight_through(watching: Watching) -> None:
    """A codebook is looked up without a straight-through estimator: the encoder has no gradient."""
    model = Quantised()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        decoded, z, codes = model(batch["x"])
        return F.mse_loss(decoded, batch["x"]) + F.mse_loss(codes, z.detach())

    fit(watching, model, optimizer, loader(samples(192)), compute_loss)


def codebook_of_the_passed_through(watching: Watching) -> None:
    """The codebook's loss is taken of the straight-through output, in which the codes are detached."""
    model = Quantised()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                _, z, codes = model(batch["x"])
                passed = z + (codes - z).detach()
                codebook_loss = F.mse_loss(passed, z.detach())
                loss = F.mse_loss(model.decoder(passed), batch["x"]) + codebook_loss
                loss.backward()
                optimizer.step()


class Detour(Net):
    """Features take a way through NumPy for a filter that torch lacks."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x).detach().numpy()
        hidden = hidden - hidden.mean(-1, keepdims=True)
        logits: Tensor = self.head(torch.from_numpy(hidden))
        return logits


def detour_through_numpy(watching: Watching) -> None:
    """The encoder's features leave the graph for NumPy; the head alone trains."""
    model = Detour()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader(samples(192)))


def auxiliary_without_graph(watching: Watching) -> None:
    """The consistency term is computed under no_grad, to save memory."""
    model = Net(dropout=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                logits = model(batch["x"])
                supervised_loss = F.cross_entropy(logits, batch["y"])
                with torch.no_grad():
                    shifted = model(batch["x"] + 0.1 * torch.randn_like(batch["x"]))
                    consistency_loss = F.mse_loss(shifted.softmax(-1), logits.softmax(-1))
                loss = supervised_loss + 10 * consistency_loss
                loss.backward()
                optimizer.step()


def light_read_as_whole_number(watching: Watching) -> None:
    """The light's size is parsed by int() from "0.4": it is 0 for every sample."""
    model = nn.ModuleDict({"picture": nn.Linear(8, 16), "light": nn.Linear(3, 16), "last": nn.Linear(16, 8)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    texts = [f"{0.1 + 0.8 * i / 192:.3f}" for i in range(192)]
    size = torch.tensor([float(int(float(text))) for text in texts])
    angle = torch.rand(192, generator=torch.Generator().manual_seed(5)) * 6.28
    rows = samples(192)
    rows.columns |= {"size": size, "angle": angle}

    def compute_loss(model: Any, batch: Any) -> Tensor:
        light = torch.stack([batch["angle"].sin(), batch["angle"].cos(), batch["size"]], 1)
        hidden = model["picture"](batch["x"]) + model["light"](light)
        return F.mse_loss(model["last"](torch.relu(hidden)), batch["x"] * 0.5)

    fit(watching, model, optimizer, loader(rows), compute_loss)


def divided_twice(watching: Watching) -> None:
    """The reader divides by 255, and the step does it again: pictures between 0 and 0.004."""
    from shadowlab.bench.silent.nets import Seer, pictures

    model = Seer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for batch in loader(pictures(160)):
        batch = {"picture": batch["picture"] / 255, "y": batch["y"]}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


class Loaded(Net):
    """As a library's `from_pretrained` hands it over: in evaluation mode."""

    @classmethod
    def from_pretrained(cls) -> "Loaded":
        model = cls(dropout=0.3)
        return model.eval()


def trained_as_it_was_loaded(watching: Watching) -> None:
    """A loaded model is in evaluation mode, and nobody calls train(): no dropout."""
    model = Loaded.from_pretrained()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(samples(192)))


_STRANGER = ("optimizer-holds-stranger", "parameter-without-optimizer", "parameter-stands-still")
_NO_GRADIENT = ("parameter-without-gradient",)

CASES = (
    Case(
        "zeroed_once_an_epoch",
        "pytorch/pytorch#47175",
        zeroed_once_an_epoch,
        Expected(1, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "encoder", "head")),
        tags=("zero_grad",),
    ),
    Case(
        "averages_are_optimized",
        "pytorch/pytorch#14467",
        averages_are_optimized,
        Expected(0, _STRANGER, ("encoder", "head")),
        tags=("optimizer",),
    ),
    Case(
        "vocabulary_grows_late",
        "huggingface/transformers#3519",
        vocabulary_grows_late,
        Expected(0, _STRANGER, ("embedding",)),
        tags=("optimizer",),
    ),
    Case(
        "unfrozen_for_nobody",
        "facebookresearch/detectron2#2486",
        unfrozen_for_nobody,
        Expected(3, ("parameter-without-optimizer", "parameter-stands-still"), ("encoder",)),
        tags=("optimizer", "frozen"),
    ),
    Case(
        "no_straight_through",
        "ritheshkumar95/pytorch-vqvae#7",
        no_straight_through,
        Expected(0, _NO_GRADIENT, ("encoder",)),
        tags=("graph",),
    ),
    Case(
        "codebook_of_the_passed_through",
        "showlab/Olaf-World#8",
        codebook_of_the_passed_through,
        Expected(0, (*_NO_GRADIENT, "loss-term-without-gradient"), ("codebook", "codebook_loss")),
        tags=("graph",),
    ),
    Case(
        "detour_through_numpy",
        "facebookresearch/inversecooking#3",
        detour_through_numpy,
        Expected(0, _NO_GRADIENT, ("encoder",)),
        tags=("graph",),
    ),
    Case(
        "auxiliary_without_graph",
        "edreisMD/ConVIRT-pytorch#7",
        auxiliary_without_graph,
        Expected(0, ("loss-term-without-gradient",), ("consistency_loss",)),
        tags=("graph",),
    ),
    Case(
        "light_read_as_whole_number",
        "metno/pysurfex#46",
        light_read_as_whole_number,
        Expected(0, ("constant-input",), ("size",)),
        tags=("data",),
    ),
    Case(
        "divided_twice",
        "calmiLovesAI/YOLOv3_TensorFlow2#21",
        divided_twice,
        Expected(0, ("input-out-of-range", "constant-input"), ("picture",)),
        tags=("data", "range"),
    ),
    Case(
        "trained_as_it_was_loaded",
        "huggingface/transformers#1703",
        trained_as_it_was_loaded,
        Expected(0, ("evaluation-mode-in-training",), ("encoder", "Loaded", "model", "eval")),
        tags=("mode",),
    ),
)
