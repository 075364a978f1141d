"""What the harness adds to a step, what the speed options give, and what the VAE's encoding takes.

The bare loop and the harness run on one model, optimizer, EMA and batch in memory. An option is measured on a model
of its own next to one without options; all in interleaved rounds (see `shadowlab.bench.rounds`).
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F

from shadowlab.bench.rounds import Rounds, Row, row_lines, timed
from shadowlab.bench.trial import SPEC, narrowed_sdxl
from shadowlab.distributed import SingleProcess
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions, EncodedBatch
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.models import POLICIES, RectifiedFlow, interpolate, predict, velocity
from shadowlab.runs import RunFolder
from shadowlab.seeding import normal
from shadowlab.settings import Config, load_config
from shadowlab.tasks import open_task
from shadowlab.training import StepPlace, Telemetry, build_trainee, build_unet, prepare_unet
from shadowlab.views.tensorboard import Board

BARE = "bare loop"
CONTROL = "bare loop again"
BETWEEN = "harness, between statistics"
STATISTICS = "harness, with statistics"
HISTOGRAMS = "harness, with statistics and histograms"
PLAIN = "harness, no option"
PLAIN_AGAIN = "harness, no option, again"
IN_MEMORY = "step on latents in memory"
ENCODING = "step that encodes its pictures"

CADENCES = ("tiny", "sdxl")  # presets
OPTIONS = {
    "channels_last": ["model.channels_last=true"],
    "AdamW without fusion": ["optimizer.fused=false"],
    "torch.compile": ["model.compile=true"],
    "attention without SDPA": [],
}
_SEED = 0


def chosen_options(names: list[str] | None) -> dict[str, list[str]]:
    """All of `OPTIONS`, or those named.

    Raises:
        UserError: there is none of that name.
    """
    for name in names or []:
        if name not in OPTIONS:
            raise UserError(f"--option {name}: there is none; choose of {', '.join(OPTIONS)}")
    return {name: words for name, words in OPTIONS.items() if names is None or name in names}


def cadence_name(preset: str) -> str:
    return f"harness, cadence of {preset}"


@dataclass(frozen=True)
class EncodingShare:
    """Part of a step's time that goes when latents are stored: 1 - (step on latents) / (step that encodes)."""

    about: str
    rows: list[Row]
    saved: float


@dataclass(frozen=True)
class StepReport:
    """What the harness costs in a step."""

    num_parameters: int
    batch: int
    size: int
    """Height and width of the latents."""
    num_rounds: int
    precision: str
    device: str
    num_threads: int
    torch: str
    rows: list[Row]
    """Ratios to the bare loop."""
    options: list[Row]
    """Ratios to the harness's step without any."""
    encoding: EncodingShare

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def row(self, name: str) -> Row:
        return next(row for row in [*self.rows, *self.options] if row.name == name)


class Loops:
    """One model, optimizer, EMA and random batch, and two training loops over them.

    Args:
        config: everything but the UNet. unet: 9 input channels and a light embedding, as `load_unet` gives.
        batch: samples, or what `task.encode` gave. size: height and width of the latents.
    """

    def __init__(self, config: Config, unet: Any, batch: int | EncodedBatch, size: int = 0) -> None:
        self.device = torch.device(config.device)
        POLICIES[config.precision].apply_to_backend(self.device)
        self.trainee = build_trainee(
            config,
            prepare_unet(unet, config, SPEC, self.device),
            RectifiedFlow(),
            SingleProcess(self.device),
            config.optimizer,
            config.train.max_steps,
            ema_decay=config.train.ema_decay,
        )
        self.batch = _random_batch(batch, size, self.device) if isinstance(batch, int) else batch
        run = RunFolder.create_beside(config, "bench")
        self.telemetry = Telemetry(
            run,
            self.trainee,
            config.diagnostics,
            kind="train",
            open_sinks=lambda: [Board(run.tensorboard)],
        )
        self._statistics_every = config.diagnostics.statistics_every
        self._histograms_every = config.diagnostics.histograms_every
        self._parameters = list(self.trainee.parameters().values())
        self._max_norm = config.optimizer.max_grad_norm or math.inf

    def bare(self) -> float:
        """The loop that anybody writes of these parts; it reads its loss at the end."""
        trainee, batch = self.trainee, self.batch
        optimizer, scaler = trainee.optimizer, trainee.scaler
        optimizer.zero_grad()
        noise = torch.randn_like(batch.data)
        t = torch.rand(len(batch.data), device=self.device)
        x_t = interpolate(noise, batch.data, t)
        timesteps = 1000.0 * (1.0 - t)
        with trainee.precision.autocast(self.device):
            predicted = predict(trainee.model, x_t, timesteps, batch.conditions)
        loss = F.mse_loss(predicted, velocity(noise, batch.data))
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if trainee.ema is not None:
            trainee.ema.step(self._parameters)
        return loss.item()

    def harness(self) -> None:
        """A step between statistics, as `train` runs it: watched, recorded."""
        self._recorded(1)

    def with_statistics(self) -> None:
        self._recorded(self._statistics_every - 1)

    def with_histograms(self) -> None:
        self._recorded(self._histograms_every - 1)

    def _recorded(self, step: int) -> None:
        self.telemetry.step([self.batch], StepPlace(step, 0, len(self.batch.ids)))

    def close(self) -> None:
        self.telemetry.close()


def measure_step(
    num_parameters: float = 80e6,
    batch: int = 4,
    size: int = 32,
    num_rounds: int = 15,
    on_row: Callable[[str], None] = lambda line: None,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    make_unet: Callable[[], Any] | None = None,
    options: dict[str, list[str]] = OPTIONS,
) -> StepReport:
    """Measure everything; `on_row` receives a line of text after each round.

    Args:
        num_parameters: of SDXL's UNet without cross-attention, narrowed to about that.
        batch: samples. size: height and width of the latents.
        make_unet: makes what takes the place of the narrowed SDXL.
        options: name -> assignments of those to be measured.

    Raises:
        UserError: the device has no such precision.
    """
    place = torch.device(device)
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        tempfile.TemporaryDirectory() as folder,
    ):

        @contextmanager
        def loops(*assignments: str) -> Iterator[Loops]:
            given = {"device": device, "precision": precision, "output_dir": folder}
            unet = _seeded_unet(make_unet or partial(narrowed_sdxl, num_parameters))
            made = Loops(load_config(options=given, assignments=assignments), unet, batch, size)
            try:
                yield made
            finally:
                made.close()

        with loops() as plain:
            total = sum(p.numel() for p in plain.trainee.unet.parameters())
            on_row(f"{total / 1e6:.1f} M parameters, batch {batch}, {size} x {size} latents, {precision}, {place}")
            rows = _harness_rows(plain, num_rounds, on_row)
        rows_of_options = []
        for name, assignments in options.items():
            rows_of_options += _option_rows(name, assignments, loops, num_rounds, on_row)
        encoding = measure_encoding(load_config(options={"device": device, "output_dir": folder}), num_rounds, on_row)
    return StepReport(
        num_parameters=total,
        batch=batch,
        size=size,
        num_rounds=num_rounds,
        precision=precision,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        num_threads=torch.get_num_threads(),
        torch=torch.__version__,
        rows=rows,
        options=rows_of_options,
        encoding=encoding,
    )


def _seeded_unet(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return make()


def _harness_rows(loops: Loops, num_rounds: int, on_row: Callable[[str], None]) -> list[Row]:
    calls = {
        BARE: loops.bare,
        BETWEEN: loops.harness,
        STATISTICS: loops.with_statistics,
        HISTOGRAMS: loops.with_histograms,
        CONTROL: loops.bare,
    }
    times = Rounds(calls, num_rounds, loops.device, on_round=on_row)
    notes = {CONTROL: "the noise of this measurement"}
    for preset in CADENCES:
        cadence = load_config(preset=preset).diagnostics
        both = 1 / cadence.histograms_every
        statistics = 1 / cadence.statistics_every - both  # a step with histograms has statistics, too
        times.mix(cadence_name(preset), {BETWEEN: 1 - statistics - both, STATISTICS: statistics, HISTOGRAMS: both})
        notes[cadence_name(preset)] = (
            f"statistics every {cadence.statistics_every} steps, histograms every {cadence.histograms_every}"
        )
    order = [BARE, CONTROL, BETWEEN, STATISTICS, HISTOGRAMS, *map(cadence_name, CADENCES)]
    return [times.row(name, BARE, notes.get(name, "")) for name in order]


def _option_rows(
    name: str, assignments: list[str], loops: Any, num_rounds: int, on_row: Callable[[str], None]
) -> list[Row]:
    """The option's row, and under it the noise of its rounds."""
    note = ""
    try:
        with loops() as plain, loops(*assignments) as other:
            if not assignments:
                other.trainee.unet.set_attn_processor(AttnProcessor())
            if "torch.compile" in name:
                note = f"compiled in {timed(other.harness, other.device)[0]:.0f} s"
            calls = {PLAIN: plain.harness, name: other.harness, PLAIN_AGAIN: plain.harness}
            times = Rounds(calls, num_rounds, plain.device, on_round=on_row)
    except MissingDependencyError as error:
        return [Row(name, note=str(error))]
    again = times.row(PLAIN_AGAIN, PLAIN)
    return [times.row(name, PLAIN, f"{note}; without it again {again.ratio:.3f}".removeprefix("; "))]


def measure_encoding(
    config: Config, num_rounds: int, on_row: Callable[[str], None] = lambda line: None
) -> EncodingShare:
    """A step of the configured model on its own data, with the VAE's encoding inside and without."""
    device = torch.device(config.device)
    task = open_task(config, device)
    dataset = task.open_data()
    pictures = task.collate([dataset[i % len(dataset)] for i in range(config.train.batch_size)])
    loops = Loops(config, build_unet(config, task.spec, device), task.encode(pictures))

    def encoding() -> None:
        loops.batch = task.encode(pictures)
        loops.harness()

    times = Rounds({IN_MEMORY: loops.harness, ENCODING: encoding}, num_rounds, device, on_round=on_row)
    loops.close()
    rows = [times.row(name, IN_MEMORY) for name in (IN_MEMORY, ENCODING)]
    about = (
        f"{config.model.architecture}, {config.model.vae_source} VAE of {task.vae.num_parameters / 1e6:.1f} M "
        f"parameters, {config.data.image_size} x {config.data.image_size} pictures, batch {config.train.batch_size}"
    )
    return EncodingShare(about, rows, 1 - 1 / (rows[1].ratio or math.nan))


def _random_batch(count: int, size: int, device: torch.device) -> EncodedBatch:
    num_concatenated = SPEC.in_channels - LATENT_CHANNELS
    return EncodedBatch(
        ids=[f"sample_{number}" for number in range(count)],
        positions=torch.arange(count),
        data=normal((count, LATENT_CHANNELS, size, size), _SEED, "data").to(device),
        conditions=Conditions(
            concatenated=normal((count, num_concatenated, size, size), _SEED, "concatenated").to(device),
            embedding=normal((count, SPEC.embedding_dim or 0), _SEED, "embedding").to(device),
        ),
    )


def format_table(report: StepReport) -> str:
    """The report for people, plain text."""
    encoding = report.encoding
    return "\n".join(
        [
            f"{report.num_parameters / 1e6:.1f} M parameters, batch {report.batch}, {report.size} x {report.size} "
            f"latents, {report.precision}, {report.device}, {report.num_threads} threads, torch {report.torch}",
            f"medians of {report.num_rounds} interleaved rounds; quartiles next to them",
            "",
            "to the bare loop",
            *row_lines(report.rows),
            "",
            "options, to the harness's step without them",
            *row_lines(report.options),
            "",
            f"latents in memory: {encoding.about}",
            *row_lines(encoding.rows),
            f"a latent cache saves {encoding.saved:.1%} of the step's time",
        ]
    )
