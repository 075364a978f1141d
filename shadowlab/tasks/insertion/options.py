"""`task_options` of the insertion task."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from shadowlab.settings import Section, key

Beside = Literal["height", "width"]
_NO_ROOM = (
    "the object cannot be concatenated along channels: an inpainting UNet has 9 input channels (noisy latents 4, mask "
    "1, masked picture 4), and an object's own 9 would make 18, which no such weights have. It stands next to the "
    "target in space: height or width"
)


class InsertionModelOptions(Section):
    """What decides the model: a run that is resumed must keep it, and stages pass for it alone."""

    objective: Literal["epsilon", "v"] = key("epsilon", decides="model")
    """What the UNet predicts. `epsilon`: the noise, on Stable Diffusion's own schedule, as its inpainting model does.
    `v`: v-prediction at zero terminal SNR, of which one step is already a picture."""
    beside: Beside = key("height", decides="model")
    """Where the object stands: below the target (`height`, as CatVTON has it) or to its right (`width`)."""
    dream: Annotated[float, Field(ge=0, le=100)] | None = key(None, decides="model", examples=[1.0])
    """DREAM (arXiv 2312.00210): train on the model's own errors, with this power p of lambda = sigma^p; an extra
    forward a step. The paper has 1; null is without."""
    region_weight: Annotated[float, Field(ge=1, le=1000)] = key(1.0, decides="model", examples=[4.0])
    """Weight of the squared error in the latents of the inserted region; of all others it is 1."""
    condition_dropout: Annotated[float, Field(ge=0, le=1)] = key(0.0, decides="model", examples=[0.1])
    """Chance that a training sample is not shown its object, for classifier-free guidance; a function of the seed and
    of the sample's place in the stream."""

    @field_validator("beside", mode="before")
    @classmethod
    def _stands_in_space(cls, value: Any) -> Any:
        if value in ("channels", "channel", 1, "1"):
            raise ValueError(_NO_ROOM)
        return value


class InsertionOptions(Section):
    """All of them."""

    model: InsertionModelOptions = InsertionModelOptions()
    validation_path: str | None = key(None, decides="nothing", examples=["validation.csv"])
    """A data set of its own to validate on; null: a share of the objects of `data.path`
    (`data.validation_fraction`)."""
    validate_on_training_data: bool = key(False, decides="nothing")
    """Permit that `validation_path` shares pictures with the training data. Every report then says that its figures
    prove nothing but memory."""
    empty_prompt: str | None = key(None, decides="nothing", examples=["empty_prompt.safetensors"])
    """File with the embedding of the empty prompt; null: that of the weights' folder, else computed once by the text
    encoder next to `model.weights`, and kept in this user's cache."""
    max_rmse: Annotated[float, Field(gt=0, le=1)] = key(0.1, decides="nothing")
    """RMSE of generated pictures inside the mask that overfit must come below."""

    @field_validator("validation_path", "empty_prompt")
    @classmethod
    def _place_can_be_asked_for(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("must name a place, or be null")
        try:
            Path(value or ".").expanduser().exists()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"no such place ({error}); write the path out") from None
        return value
