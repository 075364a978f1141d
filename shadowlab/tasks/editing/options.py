"""`task_options` of the editing task."""

from typing import Annotated

from pydantic import Field, field_validator

from shadowlab.settings import Section, key
from shadowlab.tasks.editing.edits import EDITS, Edit, EditName
from shadowlab.tasks.editing.painting import Painting
from shadowlab.tasks.places import checked_place


class EditingModelOptions(Section):
    """What decides the model: a run that is resumed must keep it, and stages pass for it alone."""

    edit: EditName = key("white-balance", decides="model")
    """What is learnt. `white-balance`: the picture without a cast of colour. `object-removal`: the picture without the
    object in the mask and without its shadow. `paint-to-image`: the picture that a painting was made of."""
    painting: Painting = key("flat", decides="model")
    """Of paint-to-image, where the data set has no inputs, what is made of the target. `flat`: few flat colours with
    dark edges. `sketch`: dark edges on white."""


class EditingOptions(Section):
    """All of them."""

    model: EditingModelOptions = EditingModelOptions()
    keep_input: bool = key(True, decides="nothing")
    """What the edit does not concern is the input's own: of object-removal every pixel outside the mask, bit for bit;
    of white-balance all but three gains in linear light, fitted to what the model paints. false: what the model paints
    is the result. paint-to-image keeps nothing."""
    validation_path: str | None = key(None, decides="nothing", examples=["pairs/validation.csv"])
    """A data set of its own to validate on; null: a share of the objects of `data.path`
    (`data.validation_fraction`)."""
    validate_on_training_data: bool = key(False, decides="nothing")
    """Permit that `validation_path` shares samples or objects with the training data. Every report then says that its
    figures prove nothing but memory."""
    empty_prompt: str | None = key(None, decides="nothing", examples=["empty_prompt.safetensors"])
    """File with the embedding of the empty prompt; null: computed once by the text encoder next to `model.weights`, and
    kept in this user's cache."""
    max_rmse: Annotated[float, Field(gt=0, le=1)] = key(0.12, decides="nothing")
    """RMSE of generated pictures, in sRGB, that overfit must come below; of object-removal inside the mask."""

    @property
    def edit(self) -> Edit:
        return EDITS[self.model.edit]

    @field_validator("validation_path", "empty_prompt")
    @classmethod
    def _place_can_be_asked_for(cls, value: str | None) -> str | None:
        return checked_place(value)
