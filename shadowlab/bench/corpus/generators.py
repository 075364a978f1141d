"""Steps whose randomness comes from a generator of the loop's own: a repetition must draw the same again."""

import random
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def timesteps_of_a_generator() -> Scene:
    """DreamBooth: timesteps come from a seeded generator, and one of four is the last of a zero-terminal schedule."""
    torch.manual_seed(0)
    unet = nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6)
    generator = torch.Generator().manual_seed(7)
    signal = torch.linspace(1, 0, 10)
    batch: dict[str, Any] = {"pixel_values": torch.randn(4, 8), "prompts": ["a photo of sks dog"] * 4}

    def drawn() -> Tensor:
        return torch.randint(10, (4,), generator=generator)

    while 9 in drawn():  # the steps before were lucky
        pass
    state = generator.get_state()
    while True:
        if (drawn() == 9).nonzero().tolist() == [[2]]:
            break
        state = generator.get_state()
    generator.set_state(state)

    def compute_loss() -> Tensor:
        t = drawn()
        noise = torch.randn(4, 8, generator=generator)
        alpha = signal[t][:, None]
        noisy = alpha.sqrt() * batch["pixel_values"] + (1 - alpha).sqrt() * noise
        prediction = unet(torch.cat([noisy, t[:, None] / 10], -1))
        original = (noisy - (1 - alpha).sqrt() * prediction) / alpha.sqrt()  # origin
        return F.mse_loss(original, batch["pixel_values"])

    return Scene(training_step(compute_loss, optimizer), unet, optimizer, batch)


def mask_of_a_generator() -> Scene:
    """Masked pretraining: NumPy's generator masks patches, and this time none; the mean over them is 0/0."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chance = numpy.random.default_rng(3)
    while True:
        state = chance.bit_generator.state
        if not (chance.random((3, 5)) < 0.15).any():
            break
    chance.bit_generator.state = state
    batch = {"patches": torch.randn(3, 5, 4)}

    def compute_loss() -> Tensor:
        masked = torch.from_numpy(chance.random((3, 5)) < 0.15)
        seen = batch["patches"].masked_fill(masked[..., None], 0.0)
        error = (model(seen) - batch["patches"]).pow(2).mean(-1)
        return (error * masked).sum() / masked.sum()  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def words_of_a_generator() -> Scene:
    """BERT: a `random.Random` of the collator chooses the words to guess; of these sentences it chooses none."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dice = random.Random(11)
    while True:
        state = dice.getstate()
        if not any(dice.random() < 0.15 for _ in range(12)):
            break
    dice.setstate(state)
    batch = {"input_ids": torch.randint(1, 12, (3, 4))}

    def collate() -> tuple[Tensor, Tensor]:
        chosen = torch.tensor([dice.random() < 0.15 for _ in range(12)]).reshape(3, 4)
        return batch["input_ids"].masked_fill(chosen, 0), batch["input_ids"].masked_fill(~chosen, -100)

    def compute_loss() -> Tensor:
        words, labels = collate()
        return F.cross_entropy(model(words).flatten(0, 1), labels.flatten())  # origin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


class _Mixer:
    """An augmentation with a generator that no closure of the step shows."""

    def __init__(self, seed: int) -> None:
        self.chance = numpy.random.default_rng(seed)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.from_numpy(self.chance.integers(0, 4, len(x)) / 4).float()
        return share[:, None] * x + (1 - share[:, None]) * x.flip(0), share


def share_of_a_given_generator() -> Scene:
    """mixup weights by the logarithm of a share that an augmentation object draws; the watch is given its generator."""
    torch.manual_seed(3)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mixer = _Mixer(0)
    while True:
        state = mixer.chance.bit_generator.state
        if (mixer.chance.integers(0, 4, 4) == 0).nonzero()[0].tolist() == [1]:
            break
    mixer.chance.bit_generator.state = state
    batch = {"images": torch.randn(4, 6), "labels": torch.tensor([0, 2, 1, 0])}

    def compute_loss() -> Tensor:
        mixed, share = mixer(batch["images"])
        losses = F.cross_entropy(model(mixed), batch["labels"], reduction="none")
        entropy = -share * share.log()  # origin
        return (losses * share + 0.1 * entropy).mean()

    scene = Scene(training_step(compute_loss, optimizer), model, optimizer, batch)
    scene.watch = {"generators": (mixer.chance,)}
    return scene


def healthy_generators() -> Scene:
    """Benign: noise, a crop and a coin from three generators; two steps before, one after another."""
    torch.manual_seed(4)
    model = nn.Linear(6, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    noise, crop, coin = torch.Generator().manual_seed(1), numpy.random.default_rng(1), random.Random(1)
    batch = {"x": torch.randn(4, 8)}

    def compute_loss() -> Tensor:
        start = int(crop.integers(0, 3))
        x = batch["x"][:, start : start + 6]
        x = x.flip(-1) if coin.random() < 0.5 else x
        return F.mse_loss(model(x + torch.randn(4, 6, generator=noise)), x)

    step = training_step(compute_loss, optimizer)
    return Scene(step, model, optimizer, batch, before=(step, step))


FAULTS: tuple[Fault, ...] = (
    Fault(
        "timesteps_of_a_generator",
        "huggingface/diffusers#5238",
        timesteps_of_a_generator,
        Expected("loss", "divide_by_zero", "out_of_domain", "div", samples=(2,), sample_ids=(), at_origin=True),
        ("generator", "inf_first"),
    ),
    Fault(
        "mask_of_a_generator",
        "NVIDIA-BioNeMo/bionemo-recipes#958",
        mask_of_a_generator,
        Expected("loss", "invalid", "empty_reduction", "div", samples=(), says=("masked",), at_origin=True),
        ("generator", "mask"),
    ),
    Fault(
        "words_of_a_generator",
        "lucidrains/soundstorm-pytorch#36",
        words_of_a_generator,
        Expected("loss", "invalid", "empty_reduction", at_origin=True),
        ("generator",),
    ),
    Fault(
        "share_of_a_given_generator",
        "RasmussenLab/vamb#12",
        share_of_a_given_generator,
        Expected("loss", ..., "out_of_domain", ..., samples=(1,), at_origin=True),
        ("generator", "inf_first"),
    ),
    Fault("healthy_generators", "huggingface/diffusers#175", healthy_generators, None, ("generator",)),
)
