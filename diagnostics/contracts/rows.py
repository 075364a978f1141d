"""Samples of one batch next to each other: the same one several times, and the same text for all."""

import re
import zlib

import torch
from torch import Tensor

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step
from diagnostics.tensors import strided

_STEPS = 2
_AGAIN, _EPOCH = 3, 4  # batches
_FEWEST = 4  # samples
_NUM_ELEMENTS = 32  # of a sample of each tensor
_MOST_STEPS = 64  # in which it is looked at
_MOST_TOKENS = 3  # different ones in an empty text: begin, end, padding
_FEWEST_TOKENS = 6  # a text that has fewer is none
_IS_TEXT = re.compile(r"(^|[^a-z])(input_ids|tokens?|ids|text|prompts?|captions?)([^a-z]|$)")


class Rows(Family):
    """What `Data` asks of the samples of a batch."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_repeated = self._num_steps = 0
        self._num_empty: dict[str, int] = {}
        self._seen: dict[int, int] = {}  # contents -> the step in which they came last, by our count
        self._num_again = 0  # steps in a row whose batch came as many steps ago as the last one
        self._period = 0

    def look(self, step: Step, main: str | None, *, is_same: bool) -> None:
        """main: name of the largest floating input; is_same: it is the object of the last step, or one number."""
        self._num_steps += 1
        if self._num_steps > _MOST_STEPS:
            return
        for name, tensor in step.inputs().items():
            if not tensor.is_floating_point() and _IS_TEXT.search(name.lower()):
                self._look_at_text(step, name, tensor)
        if main is None or step.inputs()[main].dim() < 2:
            return
        num = len(step.inputs()[main])
        columns = [_few(t, num) for t in step.inputs().values() if t.dim() and len(t) == num and not t.is_complex()]
        rows = torch.cat([one for one in columns if one is not None], dim=1) if num >= _FEWEST else torch.zeros(0, 1)
        if not is_same and len(rows):
            self._look_at_order(step, main, zlib.crc32(bytes(rows.numpy().tobytes())))
        num_different = len(torch.unique(rows, dim=0)) if len(rows) and not is_same else num
        self._num_repeated = self._num_repeated + 1 if 2 * num_different <= num else 0
        if self._num_repeated >= _STEPS:
            evidence = (
                f"of {num} samples in the batch {num_different} are different, {self._num_repeated} steps in a row"
            )
            advice = "look at the function that makes a batch, and at what its samples share"
            self.broken("batch-repeats", step, evidence, subject=main, severity="warning", advice=advice)

    def _look_at_order(self, step: Step, main: str, contents: int) -> None:
        """Batches of one epoch come again in the next one, in the same order."""
        before = self._seen.get(contents)
        period = 0 if before is None else self._num_steps - before
        self._num_again = self._num_again + 1 if period >= _EPOCH and period == self._period else int(period >= _EPOCH)
        self._period, self._seen[contents] = period, self._num_steps
        if self._num_again >= _AGAIN:
            evidence = f"{self._num_again} batches in a row are those of {period} steps before, in the same order"
            advice = "shuffle in each epoch: shuffle=True, sampler.set_epoch(epoch), no itertools.cycle over a loader"
            self.broken("batch-repeats", step, evidence, subject=main, severity="warning", advice=advice)

    def _look_at_text(self, step: Step, name: str, tensor: Tensor) -> None:
        """All texts of the batch are one text that has no word."""
        is_text = tensor.dim() == 2 and len(tensor) >= _FEWEST and tensor.shape[1] >= _FEWEST_TOKENS
        is_empty = is_text and bool((tensor == tensor[:1]).all()) and len(torch.unique(tensor[0])) <= _MOST_TOKENS
        self._num_empty[name] = self._num_empty.get(name, 0) + 1 if is_empty else 0
        if self._num_empty[name] >= _STEPS:
            found = ", ".join(str(int(one)) for one in torch.unique(tensor[0]))
            evidence = f"all {len(tensor)} texts are one, of the tokens {found} alone: an empty text,"
            evidence += f" {self._num_empty[name]} steps in a row"
            advice = "look at where captions are read from; an empty prompt may be meant"
            self.broken("constant-input", step, evidence, subject=name, severity="warning", advice=advice)


def _few(tensor: Tensor, num: int) -> Tensor | None:
    """Some elements of each of `num` samples, (num, n) float64 on the CPU."""
    values = strided(tensor)
    if values is None or not values.numel() or tensor.layout is not torch.strided:
        return None
    flat = values.detach().reshape(num, -1)
    return flat[:, :: max(1, flat.shape[1] // _NUM_ELEMENTS)][:, :_NUM_ELEMENTS].double().cpu()
