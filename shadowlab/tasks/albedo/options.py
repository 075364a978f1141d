"""`task_options` of the albedo task."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shadowlab.settings import Section, key
from shadowlab.tasks.colour import ColourSpace
from shadowlab.tasks.places import checked_place


class AlbedoModelOptions(Section):
    """What decides the model: a run that is resumed must keep it, and stages pass for it alone."""

    objective: Literal["v", "epsilon", "flow"] = key("v", decides="model")
    """What the UNet predicts. `v`: v-prediction at zero terminal SNR in trailing steps, as Marigold v1.1. `epsilon`:
    the noise, on Stable Diffusion's own schedule. `flow`: the velocity of a rectified flow."""
    noise_strength: Annotated[float, Field(ge=0, le=1)] = key(0.0, decides="model", examples=[0.9])
    """Annealed multi-resolution noise in training: strength of the coarse noise at t = 0, less towards t = 1. Marigold
    has 0.9; 0 is white noise."""
    one_step: bool = key(False, decides="model")
    """Train end to end: one step from noise, judged by the decoded picture. Needs `validation.timesteps` [0.0], and
    `v` or `flow`."""
    space: ColourSpace = key("srgb", decides="model")
    """Colour space of what the model is given and of what it predicts; pictures are brought to it where they are
    read."""

    @model_validator(mode="after")
    def _one_step_starts_from_noise(self) -> "AlbedoModelOptions":
        if self.one_step and self.objective == "epsilon":
            raise ValueError("one_step needs objective v or flow: a predicted noise says nothing of the data at t = 0")
        if self.one_step and self.noise_strength:
            raise ValueError("one_step starts from the white noise that one generates from: leave noise_strength at 0")
        return self


class AlbedoOptions(Section):
    """All of them."""

    model: AlbedoModelOptions = AlbedoModelOptions()
    beauty_space: ColourSpace | None = key(None, decides="nothing", examples=["srgb"])
    """Colour space of the data set's beauty files; null: as its metadata.json declares it. One of the two must; where
    both do, they must agree."""
    albedo_space: ColourSpace | None = key(None, decides="nothing", examples=["linear"])
    """The same of its albedo files."""
    validation_path: str | None = key(None, decides="nothing", examples=["lists/validation.txt"])
    """A data set of its own to validate on, in the colour spaces of `data.path`; null: a share of the objects of
    `data.path` (`data.validation_fraction`)."""
    validate_on_training_data: bool = key(False, decides="nothing")
    """Permit that `validation_path` shares objects with the training data. Every report then says that its figures
    prove nothing but memory."""
    empty_prompt: str | None = key(None, decides="nothing", examples=["empty_prompt.safetensors"])
    """File with the embedding of the empty prompt; null: computed once by the text encoder next to `model.weights`, and
    kept in this user's cache."""
    max_rmse: Annotated[float, Field(gt=0, le=1)] = key(0.08, decides="nothing")
    """RMSE of generated albedos, in sRGB over valid pixels, that overfit must come below."""

    @field_validator("validation_path", "empty_prompt")
    @classmethod
    def _place_can_be_asked_for(cls, value: str | None) -> str | None:
        return checked_place(value)
