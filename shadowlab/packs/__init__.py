"""A data set packed into a few large tars (WebDataset's layout) with an index, read in place at random."""

from shadowlab.packs.index import index_pack, is_pack, pack_index
from shadowlab.packs.pack import PackReport, pack_dataset

__all__ = ["PackReport", "index_pack", "is_pack", "pack_dataset", "pack_index"]
