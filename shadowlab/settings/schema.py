"""The configuration: one frozen tree of pydantic models. What each field means stands beside it.

`shadowlab.config_files` makes a Config from presets, files and `--set`; nothing else does.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from shadowlab.errors import UserError

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16", "fp16-pure"]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=10)]  # AdamW moves every weight by about this much at each step

MIN_IMAGE_SIZE = 32
MAX_IMAGE_SIZE = 4096


class Section(BaseModel):
    """Unknown keys are errors, values are never changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation not in (bool, bool | None):
            raise ValueError("must not be true or false")
        return value


class ModelConfig(Section):
    architecture: Literal["tiny", "sdxl"] = "tiny"
    """UNet configuration for random weights; loaded weights bring their own."""
    weights: str = "random"
    """`random`, a local folder in diffusers' layout, or a hub id."""
    vae: str = "embedded"
    """`embedded`, `random` (SDXL's size), a local folder in diffusers' layout, a hub id, or `same`: the VAE beside
    `weights` (random with random weights)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    channels_last: bool = False
    """Keep pictures in memory pixel by pixel (NHWC), which some convolutions want; `bench step` measures it."""
    compile: bool = False
    """torch.compile of the UNet's blocks; needs a C++ compiler. Steps with statistics and validation run eagerly."""

    @field_validator("weights", "vae")
    @classmethod
    def _place_can_be_asked_for(cls, value: str) -> str:
        """An unknown ~user or a name too long for the file system; an absent folder may still be a hub id."""
        try:
            Path(value).expanduser().exists()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"no such folder ({error}); write the path out") from None
        return value

    @property
    def vae_source(self) -> str:
        """`vae` with `same` resolved: in a hub's pipeline the VAE lies in `vae/`."""
        if self.vae != "same":
            return self.vae
        on_hub = self.weights != "random" and not Path(self.weights).expanduser().exists()
        return f"{self.weights}/vae" if on_hub else self.weights


class DataConfig(Section):
    path: str = "embedded"
    """`embedded`, a folder (objects/ masks/ shadows/ metadata.json), or the benchmark's tar."""
    latents: str | None = None
    """Folder that `shadowlab data encode` filled: train and overfit read latents from it; null encodes in each step."""
    image_size: Annotated[int, Field(gt=0, multiple_of=8)] = 128
    """Side of the square images in pixels, 32 to 4096; latents are an eighth of it."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the objects, not of the images, kept for validation."""
    num_workers: Count = 0
    """Loader processes; the order of samples does not depend on it."""

    @field_validator("latents")
    @classmethod
    def _latents_can_be_asked_for(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("must name a folder, or be null")
        try:
            Path(value or ".").expanduser().exists()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"no such folder ({error}); write the path out") from None
        return value

    @field_validator("image_size")
    @classmethod
    def _size_can_be_trained(cls, value: int) -> int:
        if value < MIN_IMAGE_SIZE:
            raise ValueError(
                f"must be at least {MIN_IMAGE_SIZE}: latents are an eighth of it, the UNet halves them twice, and its "
                "norms need more than one value"
            )
        if value > MAX_IMAGE_SIZE:
            raise ValueError(f"must be at most {MAX_IMAGE_SIZE}: attention over more latents fits no memory")
        return value


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter, 2019)."""

    learning_rate: LearningRate = 1e-5
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    max_grad_norm: PositiveFloat | None = 1.0
    """Global gradient norm above which gradients are scaled down; null leaves them alone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up; cosine falls to zero at train.max_steps."""
    warmup_steps: Count = 0
    fused: bool | None = None
    """AdamW's whole update in one kernel: a third of the time and no temporaries; null: where weights are float32.
    It computes float16 weights in float32, and a fault inside it is told without the operator."""


class TrainConfig(Section):
    max_steps: PositiveInt = 200
    """Optimizer steps."""
    batch_size: PositiveInt = 8
    """Samples per process and micro-batch; effective = this x accumulation x processes."""
    gradient_accumulation_steps: PositiveInt = 1
    ema_decay: Fraction | None = 0.999
    """Ceiling of diffusers' warmed-up EMA decay; null keeps no EMA."""
    log_every: PositiveInt = 10
    validate_every: PositiveInt = 50
    """Steps between evaluations on the fixed grid and sample pictures."""
    max_consecutive_skips: PositiveInt = 20
    """fp16 only: optimizer steps that the gradient scaler may skip in a row before train or overfit stops."""


class ValidationConfig(Section):
    num_samples: PositiveInt = 16
    """Held-out samples of the fixed grid."""
    timesteps: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 0.95)
    """t of the fixed grid; 0 is noise, 1 is data."""
    num_noises: PositiveInt = 2
    """Noise draws per sample."""
    light_sweep: bool = True
    """Also draw one held-out sample under 5 values each of theta, phi and size: 15 one-step generations."""


class CheckpointConfig(Section):
    every_steps: PositiveInt = 100
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = None
    """Checkpoints of steps that are multiples of this stay for good; null keeps the last ones alone."""


class DistributedConfig(Section):
    processes: PositiveInt = 1
    """Of `train`, each with a model of its own: one a GPU, or on a CPU as many as named. Under torchrun or `accelerate
    launch` the launcher's number holds."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp`: every process has all weights and states. `fsdp2`: each has its share of them, and gathers a block's
    weights when it needs them."""
    hang_seconds: Annotated[float, Field(ge=5, le=3600)] = 40.0
    """A process that stays behind the others, or does not answer, for so long is taken for lost: the others end and
    name it. More time has a process in a phase that it enters for the first time, in checkpoints, compiled passes and
    while a fault is looked into."""


class OverfitConfig(Section):
    num_samples: PositiveInt = 16
    max_steps: PositiveInt = 2000
    batch_size: PositiveInt = 16
    learning_rate: LearningRate = 1e-3
    warmup_steps: Count = 20
    evaluate_every: PositiveInt = 50
    min_r2: Annotated[float, Field(le=1)] = 0.95
    """Variance of the latents that one-step generation must explain."""
    min_soft_iou: Annotated[float, Field(ge=0, le=1)] = 0.80
    """Soft intersection over union of generated and true shadows that must be reached."""


class DiagnosticsConfig(Section):
    statistics_every: Count = 10
    """Steps between records of layer and parameter statistics; 0 records none."""
    histograms_every: Count = 50
    """Steps between gradient and weight histograms in TensorBoard; 0 writes none."""
    histogram_parameters: tuple[str, ...] = ("conv_in.*", "class_embedding.*", "mid_block.*", "conv_out.*")
    """Shell patterns over parameter names."""


class Config(Section):
    seed: Count = 0
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:N`."""
    precision: PrecisionName = "fp32"
    allow_unsafe: bool = False
    """Needed by fp16-pure, in which weights and optimizer states are float16."""
    output_dir: str = "runs"
    """Folder of the run folders."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    overfit: OverfitConfig = OverfitConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()

    @field_validator("output_dir")
    @classmethod
    def _folder_can_be_asked_for(cls, value: str) -> str:
        try:
            Path(value).exists()
        except OSError as error:  # a name too long for the file system, a folder that may not be entered
            raise ValueError(f"cannot be read ({error.strerror}); choose another folder") from None
        return value

    @model_validator(mode="after")
    def _unsafe_is_asked_for(self) -> "Config":
        if self.precision == "fp16-pure" and not self.allow_unsafe:
            raise ValueError(
                "precision fp16-pure keeps weights and AdamW states in float16, where eps = 1e-8 rounds to 0; "
                "use fp16 (float32 master weights) or add --allow-unsafe"
            )
        return self

    def eager(self) -> "Config":
        """The same without compilation, for what runs a step once."""
        return self.model_copy(update={"model": self.model.model_copy(update={"compile": False})})

    def model_hash(self) -> str:
        """Names what the stages prove: the model, its image size and its precision. 12 hex digits.

        Local weights enter by content, not by path alone. How the same function is computed is left out: gradient
        checkpointing changes no number, layout and compilation the last bits alone.
        """
        proven = {
            "model": self.model.model_dump(mode="json", exclude={"gradient_checkpointing", "channels_last", "compile"}),
            "files": [_digest(source) for source in (self.model.weights, self.model.vae_source)],
            "image_size": self.data.image_size,
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(proven, sort_keys=True).encode()).hexdigest()[:12]


def _digest(source: str) -> str:
    """Names and contents of the weights and configurations in a local folder. 12 hex digits."""
    root = Path(source).expanduser()
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else []:
        if file.suffix not in (".json", ".safetensors") or file.is_dir():
            continue
        try:
            status = file.stat()
            content = _file_digest(file, status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); mend the file or take it out") from None
        digest.update(f"{file.relative_to(root)} {content} ".encode())
    return digest.hexdigest()[:12]


@cache
def _file_digest(file: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of the whole file, read once in a process for as long as its time and size stay."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
