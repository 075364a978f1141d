"""The configuration: one frozen tree of sections. Each key stands with its default, what it decides, and its meaning.

`load_config` makes a Config from presets, files and `--set`; nothing else does.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from shadowlab.settings.augment import AugmentConfig, uncached
from shadowlab.settings.identity import hash_of
from shadowlab.settings.keys import Section, key

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16", "fp16-pure"]
Architecture = Literal["tiny", "tiny-inpainting", "small", "sdxl", "sd15", "sd15-inpainting", "sd21"]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=10)]  # AdamW moves every weight by about this much at each step

MIN_IMAGE_SIZE = 32
MAX_IMAGE_SIZE = 4096


class ModelConfig(Section):
    """The UNet and the VAE: where their weights come from, and how they are computed."""

    architecture: Architecture = key("tiny", decides="model")
    """UNet configuration for random weights; loaded weights bring their own."""
    weights: str = key(
        "random", decides="model", option="--weights", examples=["stabilityai/stable-diffusion-xl-base-1.0", "my-unet/"]
    )
    """Weights of the UNet: `random`, `embedded-inpainting` (shipped, of `tiny-inpainting`), a run of the same task and
    inputs (its folder, name, `latest` or RUN@best; averaged weights, which the new run keeps), a local folder in
    diffusers' layout, or a hub id."""
    vae: str = key("embedded", decides="model", examples=["same", "random", "madebyollin/taesd"])
    """`embedded`, `embedded-albedo`, `random` (SDXL's size), `random-tiny` (TAESD's), a local folder in diffusers'
    layout, a hub id, or `same`: the VAE next to `weights` (random with random weights)."""
    gradient_checkpointing: bool = key(False, decides="nothing", option="--checkpointing/--no-checkpointing")
    """Recompute activations in the backward pass: less memory, about a third more time."""
    channels_last: bool = key(False, decides="nothing")
    """Keep pictures in memory pixel by pixel (NHWC), which some convolutions want; `bench step` measures it."""
    compile: bool = key(False, decides="nothing")
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
    def vae_is_random(self) -> bool:
        """Whether nobody has trained the VAE, so that it knows no pictures."""
        return self.vae_source in ("random", "random-tiny")

    @property
    def vae_source(self) -> str:
        """`vae` with `same` resolved: in a hub's pipeline the VAE lies in `vae/`."""
        if self.vae != "same":
            return self.vae
        on_hub = self.weights != "random" and not Path(self.weights).expanduser().exists()
        return f"{self.weights}/vae" if on_hub else self.weights


class DataConfig(Section):
    """The samples, and how they are read."""

    path: str = key("embedded", decides="numbers", option="--data", examples=["my-renders/", "benchmark.tar"])
    """Data set: `embedded`, a folder (objects/ masks/ shadows/ metadata.json), or the benchmark's tar."""
    latents: str | None = key(None, decides="nothing", examples=["latents/"])
    """Folder that `shadowlab data encode` filled: train and overfit read latents from it; null encodes in each step."""
    image_size: Annotated[int, Field(multiple_of=8)] = key(
        128, decides="model", minimum=MIN_IMAGE_SIZE, maximum=MAX_IMAGE_SIZE
    )
    """Side of the square images in pixels; latents are an eighth of it."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = key(0.2, decides="numbers")
    """Share of the objects, not of the images, kept for validation."""
    num_workers: Count = key(0, decides="nothing")
    """Loader processes; the order of samples does not depend on it."""
    augment: AugmentConfig = AugmentConfig()

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
    """AdamW (Loshchilov and Hutter, 2019) and its learning rate."""

    learning_rate: LearningRate = key(1e-5, decides="rate")
    """Learning rate after warm-up: AdamW moves every weight by about this much at each step."""
    name: Literal["adamw", "adamw8bit"] = key("adamw", decides="numbers")
    """`adamw` keeps two moments of 4 bytes a parameter. `adamw8bit` (bitsandbytes; extra `low-memory`) keeps one byte
    of each, and float32 for tensors of fewer than 4,096 elements."""
    beta1: Fraction = key(0.9, decides="numbers")
    """Decay of the mean of the gradients."""
    beta2: Fraction = key(0.999, decides="numbers")
    """Decay of the mean of the squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1)] = key(1e-8, decides="numbers")
    """Added to the root of the second moment before the division; below about 6e-8 it is 0 in float16."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = key(0.01, decides="numbers")
    """Decoupled from the gradients: each step takes learning_rate x weight_decay of every weight off it."""
    max_grad_norm: PositiveFloat | None = key(1.0, decides="numbers")
    """Global gradient norm above which gradients are scaled down; null leaves them alone."""
    schedule: Literal["constant", "cosine"] = key("constant", decides="rate")
    """The learning rate after warm-up; cosine falls to zero at train.max_steps."""
    warmup_steps: Count = key(0, decides="rate")
    """Steps over which the learning rate rises linearly."""
    fused: bool | None = key(None, decides="nothing")
    """AdamW's whole update in one kernel: a third of the time and no temporaries; null: where weights are float32.
    It computes float16 weights in float32, and a fault inside it is reported without the operator."""


class TrainConfig(Section):
    """The stage `train`."""

    max_steps: PositiveInt = key(200, decides="cosine_end", option="--max-steps")
    """Optimizer steps."""
    batch_size: PositiveInt = key(8, decides="batch", option="--batch")
    """Samples per process and micro-batch; effective = this x accumulation x processes."""
    gradient_accumulation_steps: PositiveInt = key(1, decides="batch")
    """Micro-batches whose gradients are averaged for one optimizer step."""
    noise_share: Annotated[float, Field(ge=0, le=1)] = key(0.0, decides="numbers", examples=[0.5])
    """Share of each step's samples that train at t = 0, pure noise, which is all that one-step generation asks of the
    model; t of the others is uniform. 0: all are uniform, as rectified flow has it."""
    ema_decay: Fraction | None = key(0.999, decides="numbers")
    """Ceiling of diffusers' warmed-up EMA decay; null keeps no EMA."""
    log_every: PositiveInt = key(10, decides="nothing")
    """Steps between lines of progress; metrics.jsonl has every step."""
    validate_every: PositiveInt = key(50, decides="nothing")
    """Steps between evaluations on the fixed grid and sample pictures."""
    trainable: tuple[str, ...] | None = key(
        None, decides="model", hashed_if_changed=True, examples=[["*.attn1.*"], ["conv_in.*", "mid_block.*"]]
    )
    """Shell patterns over parameter names: the parameters that match one train, the others are frozen. Null: those that
    the task trains."""
    max_consecutive_skips: PositiveInt = key(20, decides="nothing")
    """fp16 only: optimizer steps that the gradient scaler may skip in a row before train or overfit stops."""


class ValidationConfig(Section):
    """The fixed grid: the same held-out samples, times and noises at each evaluation."""

    num_samples: PositiveInt = key(16, decides="nothing")
    """Held-out samples of the fixed grid."""
    timesteps: Annotated[tuple[Fraction, ...], Field(min_length=1)] = key(
        (0.0, 0.25, 0.5, 0.75, 0.95), decides="nothing"
    )
    """t of the fixed grid; 0 is noise, 1 is data."""
    num_noises: PositiveInt = key(2, decides="nothing")
    """Noise draws per sample."""


class CheckpointConfig(Section):
    """When a run is saved, and how much of it stays."""

    every_steps: PositiveInt = key(100, decides="nothing")
    """Optimizer steps between checkpoints; the last step always has one."""
    keep_last: PositiveInt = key(3, decides="nothing")
    """Newest checkpoints that stay."""
    keep_best: bool = key(False, decides="nothing")
    """Also keep the checkpoint that validation judged best by the task's first metric, in its better direction: where a
    command takes a model, `RUN@best` is this one."""
    keep_every: PositiveInt | None = key(None, decides="nothing", examples=[10_000])
    """Checkpoints of steps that are multiples of this stay for good; null keeps the last ones alone."""


class DistributedConfig(Section):
    """Several processes that train one model."""

    processes: PositiveInt = key(1, decides="batch", option="--processes")
    """Processes of `train`, started on this machine, one a GPU, or on its CPU as many as named. Under torchrun or
    `accelerate launch` the launcher's number holds."""
    strategy: Literal["ddp", "fsdp2"] = key("ddp", decides="nothing")
    """`ddp`: every process has all weights and states. `fsdp2`: each has its share of them, and gathers a block's
    weights when it needs them."""
    hang_seconds: Annotated[float, Field(ge=5, le=3600)] = key(40.0, decides="nothing")
    """A process that stays behind the others, or does not answer, for so long is taken for lost: the others end and
    name it. More time has a process in a phase that it enters for the first time, in checkpoints, compiled passes and
    while a fault is looked into."""


class OverfitConfig(Section):
    """The stage `overfit`: the same samples again and again, until they are known by heart."""

    num_samples: PositiveInt = key(16, decides="nothing", option="--samples")
    """Samples to memorise."""
    max_steps: PositiveInt = key(2000, decides="nothing", option="--max-steps")
    """Optimizer steps at most."""
    batch_size: PositiveInt = key(16, decides="nothing")
    """Samples of a step."""
    learning_rate: LearningRate = key(1e-3, decides="nothing")
    """In place of optimizer.learning_rate."""
    warmup_steps: Count = key(20, decides="nothing")
    """In place of optimizer.warmup_steps."""
    evaluate_every: PositiveInt = key(50, decides="nothing")
    """Steps between evaluations; the stage ends as soon as one meets what is asked for."""
    min_r2: Annotated[float, Field(le=1)] = key(0.95, decides="nothing")
    """Variance of the latents that one-step generation must explain."""


class DiagnosticsConfig(Section):
    """What is recorded of layers and parameters. It changes no number of the run."""

    statistics_every: Count = key(10, decides="nothing")
    """Steps between records of layer and parameter statistics; 0 records none."""
    histograms_every: Count = key(50, decides="nothing")
    """Steps between gradient and weight histograms in TensorBoard; 0 writes none."""
    histogram_parameters: tuple[str, ...] = key(
        ("conv_in.*", "class_embedding.*", "mid_block.*", "conv_out.*"), decides="nothing"
    )
    """Shell patterns over parameter names."""


class Config(Section):
    """All that a run is configured by."""

    task: str = key("shadow", decides="model", hashed_if_changed=True)
    """What is trained for: the name of a folder of `shadowlab/tasks`."""
    task_options: dict[str, Any] = key({}, decides="nothing", examples=[{"min_soft_iou": 0.7, "light_sweep": False}])
    """Options of this task alone; the page of the task lists its options."""
    seed: Count = key(0, decides="numbers", option="--seed")
    """Seed of all randomness."""
    device: str = key("auto", decides="nothing", option="--device", examples=["cpu", "cuda", "cuda:1"])
    """`auto` (cuda where there is one), `cpu`, `cuda` or `cuda:N`."""
    precision: PrecisionName = key("fp32", decides="model", option="--precision")
    """`fp32`, `tf32`, `bf16`, `fp16` or `fp16-pure`. The first four keep weights in float32; `bf16` and `fp16` compute
    in autocast, `tf32` needs an NVIDIA GPU, `fp16-pure` needs `allow_unsafe`."""
    allow_unsafe: bool = key(False, decides="nothing", option="--allow-unsafe")
    """Permit fp16-pure, in which weights and optimizer states are float16."""
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = key(
        ("tensorboard",), decides="nothing", examples=[["tensorboard", "wandb"]]
    )
    """Views that are written while a run trains: `tensorboard`, `wandb` (extra of that name; offline without a key),
    `mlflow` (likewise; a local folder without a server). metrics.jsonl has all that they show."""
    output_dir: str = key("runs", decides="nothing", examples=["/scratch/runs"])
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

    @field_validator("tracking")
    @classmethod
    def _each_view_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len({*value}) < len(value):
            raise ValueError("names a view twice; name each once")
        return value

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

    @model_validator(mode="after")
    def _8_bit_states_can_be_kept(self) -> "Config":
        problem = why_no_8_bit_states(self) if self.optimizer.name == "adamw8bit" else None
        if problem is not None:
            raise ValueError(f"optimizer.name adamw8bit {problem}, or optimizer.name=adamw")
        return self

    @model_validator(mode="after")
    def _latents_can_be_kept(self) -> "Config":  # here, where a check across keys names no file that said one of them
        data = self.data
        if data.latents is not None and (changed := data.augment.needs_pictures):
            raise ValueError(
                f"data.latents: {uncached(changed)}, or leave data.latents out (data.augment.flip can be kept)"
            )
        return self

    def eager(self) -> "Config":
        """The same without compilation, for what runs a step once."""
        return self.model_copy(update={"model": self.model.model_copy(update={"compile": False})})

    def model_hash(self) -> str:
        """Names what the stages prove: the keys that decide the model, image size and precision. 12 hex digits.

        Local weights enter by content, not by path alone. How the same function is computed is left out: gradient
        checkpointing changes no number, layout and compilation the last bits alone.

        Raises:
            UserError: local weights cannot be read.
        """
        return hash_of(self, [self.model.weights, self.model.vae_source])


def why_no_8_bit_states(config: Config) -> str | None:
    """What of a configuration bitsandbytes' states cannot do, with the way out; None where they can all."""
    if config.precision == "fp16-pure":
        return "updates float32 weights here, and fp16-pure has none: use --precision fp16 or bf16"
    if config.distributed.strategy == "fsdp2":
        return "cannot be sharded or saved from shards (bitsandbytes#89): use distributed.strategy=ddp"
    if config.model.channels_last:
        return "lays every weight out anew in each step, which undoes channels_last: use model.channels_last=false"
    if config.optimizer.fused is not None:
        return "has its own kernel: leave optimizer.fused out"
    return None
