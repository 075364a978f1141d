"""An object into a picture: it stands next to the target, as CatVTON has it (Chong et al., ICLR 2025)."""

from shadowlab.tasks.insertion.generate import InsertionGenerator, check_options
from shadowlab.tasks.insertion.samples import InsertionBatch, InsertionSample, collate

__all__ = ["InsertionBatch", "InsertionGenerator", "InsertionSample", "check_options", "collate"]
