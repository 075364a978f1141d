"""`negative`: a colour picture to its negative, by an SD-like UNet that keeps its cross-attention.

Legend: B batch, H W pixels, h w latents (H/8), N tokens of width 16.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shadowlab.charts import Chart, Curve
from shadowlab.checks import Check, PathTable
from shadowlab.data import Entry, Examined, Problem, thumbnail
from shadowlab.encoded_batch import Conditions, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import ForwardSeen, ImageVae, ModelSpec, Objective, Predict, load_vae
from shadowlab.seeding import normal
from shadowlab.settings import Config, Section, key
from shadowlab.tasks import R2, Baseline, Criterion, Metric, Probe, Tracks

TOKENS = (3, 16)
MAE = Metric("mae", "mean absolute error", higher_is_better=False)


class VPrediction:
    """v = alpha noise - sigma data (Salimans and Ho, 2022) on a cosine schedule of zero terminal SNR; DDIM."""

    prediction, timestep = "v", "999 (1 - t)"

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._scales(t, data)
        return alpha * data + sigma * noise

    def timesteps(self, t: Tensor) -> Tensor:
        return 999.0 * (1.0 - t.float())

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._scales(t, data)
        return alpha * noise - sigma * data

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return (prediction.float() - self.target(noise, data, t)).square().flatten(1).mean(dim=1)

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        x, times = noise, torch.linspace(0, 1, num_steps + 1, device=noise.device)
        for now, then in zip(times[:-1], times[1:], strict=True):
            t = now.expand(len(noise))
            v, (alpha, sigma) = predict(x, t), self._scales(t, noise)
            x = self.noised(sigma * x + alpha * v, alpha * x - sigma * v, then.expand(len(noise)))
        return x

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        ends = [self.generate(lambda x, t: self.target(noise, data, t), noise, n) for n in (1, 8)]
        worst = max(float((end - data).abs().amax()) for end in ends)
        name = "the true v leads from noise to data"
        return Check(name, worst < 1e-3, "error < 1e-3", f"{worst:.1e}", "see VPrediction")

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        wanted = self.noised(seen.noise, seen.data, 1.0 - seen.timesteps / 999.0)
        off = float((seen.x_t - wanted).abs().amax())
        return [Check("timesteps belong to x_t", off < 0.05, "< 0.05", f"{off:.1e}", "999 is noise")]

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        angle = (t * (math.pi / 2)).view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
        return angle.sin(), angle.cos()


@dataclass(frozen=True, eq=False)
class Pair:
    """picture, target: (B, 3, H, W) in [0, 1]; of one sample without B."""

    ids: list[str]
    picture: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> "Pair":
        return Pair([self.ids[i] for i in rows.tolist()], self.picture[rows], self.target[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Pair":
        return replace(self, picture=self.picture.to(device), target=self.target.to(device))


class Negatives:
    """Smooth random pictures with their negatives: nothing lies on the disk."""

    name, notices = "negatives", ["made of random numbers"]

    def __init__(self, count: int, size: int) -> None:
        self.ids, self._size = [f"n{i:02d}" for i in range(count)], size
        self.object_ids = [f"pair {i // 2}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Pair:
        coarse = normal((1, 3, 4, 4), 0, "negative", i).sigmoid()
        picture = torch.nn.functional.interpolate(coarse, self._size, mode="bilinear")
        return Pair([self.ids[i]], picture, 1.0 - picture)

    def entry(self, i: int) -> Entry:
        return Entry(self.ids[i], self.object_ids[i], None, None, {})

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.ids, self._size)).encode()).hexdigest()


class NegativeExamination:
    """An `Examination` of pictures that are made: a negative that is brighter than its picture is marked."""

    marks = ("bright",)

    def __init__(self, negatives: Negatives) -> None:
        self._negatives = negatives
        self.ids, self.object_ids, self.notices = negatives.ids, negatives.object_ids, negatives.notices
        self.problems, self.remarks = list[Problem](), list[str]()

    def examine(self, i: int) -> Examined:
        pair = self._negatives[i]
        is_bright = bool(pair.target.mean() > pair.picture.mean())
        return Examined(marks=frozenset(self.marks if is_bright else ()), thumbnail=thumbnail([pair.picture[0]]))

    def basis(self, i: int) -> str:
        return self.ids[i]

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        return [f"{len(marked['bright'])} of {num_read} negatives are bright"]

    def fingerprint(self) -> str:
        return self._negatives.fingerprint()


class NegativeOptions(Section):
    """`task_options` of the task."""

    max_mae: float = key(0.9, decides="nothing")
    """Mean absolute error that overfit must come below."""


@dataclass(frozen=True)
class NegativeGenerator:
    """What the trained model makes of a picture."""

    task: "NegativeTask"
    draw: Callable[[EncodedBatch, int, int], Tensor]

    def generate(self, picture: Tensor, steps: int = 1, seed: int = 0) -> Tensor:
        """(3, H, W) in [0, 1], both."""
        pair = Pair(["own"], picture[None], 1 - picture[None])
        return self.draw(self.task.encode(pair), steps, seed)[0]


class NegativeEvaluation:
    """An `Evaluation` of a single track, without control or published figures."""

    metrics, ranking, drawn, notes = (MAE,), "mae", ("mae",), ()
    baselines = {"the picture itself": lambda batch: batch.picture}  # noqa: RUF012
    settings: Mapping[str, Any] = {}
    control_texts: Mapping[str, str] = {}

    def tracks(self, data: Negatives) -> Tracks:
        return Tracks(("all",), [0] * len(data))

    def judge(self, prediction: Tensor, batch: Pair) -> dict[str, Tensor]:
        return {"mae": (prediction - batch.target).abs().flatten(1).mean(dim=1)}

    def control(self, batch: Pair, draw: Any) -> dict[str, float]:
        return {}

    def remarks(self, data: Negatives) -> list[str]:
        return []

    def published(self, data: Negatives, steps: int) -> dict[str, dict[str, float]]:
        return {}

    def shown(self, batch: Pair) -> dict[str, Tensor]:
        return {"picture": batch.picture[0]}

    def caption(self, batch: Pair) -> str:
        return ""


class NegativeTask:
    """A `Task`."""

    evaluation = NegativeEvaluation()

    name, sweep_name, draws_sweep = "negative", "sweep", False
    comparison = "picture / negative / one step"
    spec = ModelSpec(8, ("x_t", "picture"), "repeat", keeps_cross_attention=True, trainable=("*.attn1.*",))
    objective: Objective = VPrediction()
    metrics: tuple[Metric, ...] = (MAE,)
    baseline: Baseline | None = Baseline("itself", "the picture itself")
    augmentation = None
    reference = None  # nothing is compared: check-forward says so
    charts: tuple[Chart, ...] = (Chart("Error on {samples}", (Curve("model", "mae"), Curve("itself", "itself_mae"))),)
    vae: ImageVae

    def __init__(self, config: Config, options: NegativeOptions) -> None:
        self._config = config
        self.latent_parts: Mapping[str, tuple[str, ...]] = {"data": ("target",), "concatenated": ("picture",)}
        self.criterion = Criterion(((R2, config.overfit.min_r2), (MAE, options.max_mae)))

    @classmethod
    def options(cls) -> type[NegativeOptions]:
        return NegativeOptions

    def load_vae(self, device: torch.device) -> None:
        self.vae = load_vae(self._config.model.vae_source, seed=self._config.seed).to(device)

    def find_data(self) -> None:
        if not self._config.data.path.removesuffix(" pictures").isdecimal():
            raise UserError(f"{self._config.data.path}: say how many, as `12 pictures`")

    def open_data(self, image_size: int | None = None) -> Negatives:
        self.find_data()
        count = int(self._config.data.path.removesuffix(" pictures"))
        return Negatives(count, image_size or self._config.data.image_size)

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> NegativeExamination:
        return NegativeExamination(Negatives(int(path.removesuffix(" pictures")), image_size or 16))

    @staticmethod
    def collate(samples: Sequence[Pair]) -> Pair:
        pictures, targets = ([getattr(one, name) for one in samples] for name in ("picture", "target"))
        return Pair([one.ids[0] for one in samples], torch.cat(pictures), torch.cat(targets))

    def own_input(self, given: Mapping[str, Any]) -> tuple[Pair, str] | None:
        if any(value is not None for name, value in given.items() if name != "sample"):
            raise UserError("a negative has no object, mask or light")
        return None

    def random_batch(self, count: int) -> Pair:
        size = self._config.data.image_size
        return Pair([str(i) for i in range(count)], torch.rand(count, 3, size, size), torch.rand(count, 3, size, size))

    @torch.no_grad()
    def encode(self, batch: Pair, positions: Tensor | None = None) -> EncodedBatch:
        latents = {part: self.encode_part(part, batch.to(self.vae.device)) for part in self.latent_parts}
        return self.assemble(batch.ids, torch.arange(len(batch)) if positions is None else positions, latents, {})

    def encode_part(self, part: str, batch: Pair) -> Tensor:
        return self.vae.encode((batch.target if part == "data" else batch.picture) * 2 - 1)

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        return {}

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        tokens = normal(TOKENS, 0, "prompt").to(self.vae.device).expand(len(ids), *TOKENS)
        conditions = Conditions(concatenated=latents["concatenated"].to(self.vae.device), tokens=tokens)
        return EncodedBatch(ids, positions, latents["data"].to(self.vae.device), conditions)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return ((self.vae.decode(latents) + 1) / 2).clamp(0, 1)

    def generator(self, draw: Callable[[EncodedBatch, int, int], Tensor]) -> "NegativeGenerator":
        return NegativeGenerator(self, draw)

    @property
    def exported(self) -> None:
        return None

    def target(self, batch: Pair) -> Tensor:
        return batch.target

    def judge(self, prediction: Tensor, batch: Pair) -> dict[str, Tensor]:
        return {"mae": (prediction - batch.target.to(prediction.device)).abs().flatten(1).mean(dim=1)}

    def baselines(self, batch: Pair) -> dict[str, Tensor]:
        return {"itself": batch.picture}

    def probes(self, batch: Pair, encoded: EncodedBatch, reach: str) -> list[Probe]:
        other = normal(TOKENS, 1, "prompt").to(encoded.data.device).expand(len(batch), *TOKENS)
        return [Probe("prompt", encoded, encoded.with_conditions(tokens=other), "to another prompt")]

    def sweep(self, batch: Pair, encoded: EncodedBatch, steps: int) -> dict[str, list[tuple[float, EncodedBatch]]]:
        return {}

    def input_figure(self, batch: Pair) -> Tensor:
        return batch.picture[0]

    def comparison_figure(self, batch: Pair, prediction: Tensor, max_rows: int) -> Tensor:
        return torch.cat([batch.picture[0], batch.target[0], prediction[0].cpu()], dim=2)

    def sweep_figure(self, batch: Pair, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        raise AssertionError("there is no sweep")

    def check_batch(self, batch: Pair, path: PathTable) -> list[Check]:
        path.add("input", "picture", batch.picture, "(B, 3, H, W)", (0, 1))
        return []

    def check_encoding(self, batch: Pair, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        path.add("VAE", "latents", encoded.data, "(B, 4, h, w)", (-30, 30))
        return []
