"""The batches: constant, out of range, repeated, drawn twice. A few elements of each tensor are looked at.

On the CPU in every step. On an accelerator in the first steps and where a step is due, for it reads on the host.
"""

import re
import weakref
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.loaders import LOADERS
from diagnostics.contracts.rows import Rows
from diagnostics.contracts.scene import Scene, Step
from diagnostics.tensors import strided

_NUM_ELEMENTS = 4096
_FIRST_STEPS = 8
_CONSTANT_STEPS, _LABEL_STEPS = 3, 3
_LARGE_SAMPLE, _LABELS = 64, 4  # elements of a sample; samples
_FACTOR, _KNOWN = 16.0, 4
_VARIED, _REPEATS, _OTHER_LABELS = 4, 4, 2
_FIRST_BATCHES = 2  # in a row, after one more of the same contents
_MOST_TENSORS, _MOST_SEEN = 16, 256
_BYTES, _BYTES_STEPS = 64.0, 2  # largest value, from which pictures of whole numbers are those of bytes
_TWICE = 1.01 / 255  # largest value of pictures that were divided by 255 twice
_FLAT = 0.05  # of the magnitude: pictures that were normalised by the statistics of 0..255
_MAY_BE_ZERO = re.compile(r"mask|weight|pad|crop|offset|reward|done|bias|prior|hidden|state|delta|shift|flow|residual")
_IS_TIME = re.compile(r"(^|[^a-z])(t|times?|timesteps?|sigmas?|noise_levels?)([^a-z]|$)")
_IS_LABEL = re.compile(r"(^|[^a-z])(labels?|targets?|y|class(es)?)([^a-z]|$)")


@dataclass
class _History:
    """Of one tensor of the batch, by name."""

    last: Tensor | None = None
    """(n,): a few of its elements in the last step."""
    object: Any = None
    """Weak reference to the tensor of the last step."""
    base: Any = None
    """Weak reference to the tensor that the last step's was a view of."""
    seen: set[int] = field(default_factory=set)
    """Contents of runs that came to an end."""
    returns: bool = False
    """Contents have come back after others: a few prompts that take turns."""
    num_constant: int = 0
    num_known: int = 0
    """Steps that the range is of."""
    lowest: float = 0.0
    highest: float = 0.0
    """Least and largest magnitude of a batch in the first steps."""
    run: int = 1
    """Steps in a row with the same contents."""
    num_varied: int = 0
    """Steps in a row, with other contents each, before the run."""
    runs: list[int] = field(default_factory=list)
    """Lengths of the last runs that came to an end."""
    was_shared: bool = False
    """Whether a run had the same object: the loop means to repeat it."""
    is_object: bool = False
    """Whether it is the tensor of the last step."""
    was_constant: bool = False
    num_bytes: int = 0
    """Steps in a row with pictures of whole numbers up to 255."""
    num_dark: int = 0
    """Steps in a row with pictures of no more than 1/255."""
    num_flat: int = 0
    """Steps in a row with pictures whose values are almost one."""


class Data(Family):
    """Follows each tensor of `batch=`."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._histories: dict[str, _History] = {}
        self._num_steps = 0
        self._num_other_labels = 0
        self._rows = Rows(scene, reports)
        self._num_first = 0  # steps in a row whose batch comes first out of its iterator

    def begin(self, step: Step) -> None:
        LOADERS.listen(self)

    def detach(self) -> None:
        LOADERS.forget(self)

    def end(self, step: Step) -> None:
        self._num_steps += 1
        looks_at_all = step.is_due or self._num_steps <= _FIRST_STEPS
        repeats: dict[str, bool] = {}
        for name, tensor in list(step.inputs().items())[:_MOST_TENSORS]:
            values = strided(tensor)
            if values is None or not values.numel() or values.is_complex():
                continue
            if not values.is_cpu and not looks_at_all:
                self._histories.pop(name, None)  # steps in a row are not known
                continue
            repeats[name] = self._follow(step, name, values.detach(), tensor)
        main = self._main(step)
        self._check_constant(step, main)
        self._check_repeats(step, repeats, main)
        if looks_at_all or (main is not None and step.inputs()[main].is_cpu):
            known = self._histories.get(main or "")
            self._rows.look(step, main, is_same=known is not None and (known.is_object or known.was_constant))

    def forget(self) -> None:
        pass

    @staticmethod
    def _main(step: Step) -> str | None:
        """The largest floating input."""
        found = {n: t for n, t in step.inputs().items() if t.is_floating_point() and t.dim() > 1 and not t.is_sparse}
        sizes = {n: t.numel() for n, t in found.items() if not re.search(r"mask|weight", n.lower())}
        return max(sizes, key=lambda name: sizes[name], default=None)

    def _follow(self, step: Step, name: str, values: Tensor, tensor: Tensor) -> bool:
        """Whether it has the contents that it had in the last step."""
        flat = values.reshape(-1) if values.is_contiguous() else values.flatten()
        few = flat[:: max(1, flat.numel() // _NUM_ELEMENTS)][:_NUM_ELEMENTS].clone()
        known = self._histories.setdefault(name, _History())
        is_same = known.last is not None and known.last.shape == few.shape and torch.equal(known.last, few)
        is_object = known.object is not None and known.object() is tensor
        base = tensor if tensor._base is None else tensor._base
        is_object |= known.base is not None and known.base() is base  # another view of it
        known.base = weakref.ref(base)
        known.is_object = is_object
        is_narrow = few.dtype.itemsize == 1 or few.dtype in (torch.uint16, torch.uint32, torch.uint64)
        number = few.float() if is_narrow else few
        low, high = (float(end) for end in torch.aminmax(number))
        known.was_constant = low == high
        known.num_constant = known.num_constant + 1 if low == high else 0
        if is_same:
            known.was_shared |= is_object
            known.run += 1
        elif known.last is not None:
            known.num_varied = known.num_varied + 1 if known.run == 1 else 0
            contents = zlib.crc32(few.cpu().view(torch.uint8).numpy().tobytes())
            known.returns |= contents in known.seen
            if len(known.seen) < _MOST_SEEN:
                known.seen.add(contents)
            known.runs = [*known.runs[-3:], known.run]
            known.run = 1
        known.last, known.object = few, weakref.ref(tensor)
        if values.is_floating_point() and values.dim() > 1:
            self._check_range(step, name, known, max(abs(low), abs(high)), is_few=len(values) < _LABELS)
            self._check_bytes(step, name, known, values, low, high)
        if values.is_floating_point() and values.dim() <= 2:
            self._check_zeros(step, name, known, values)
        if not values.is_floating_point() and _IS_LABEL.search(name.lower()):
            self._check_labels(step, name, known, values)
        return is_same

    def _check_range(self, step: Step, name: str, known: _History, size: float, *, is_few: bool) -> None:
        """A warning where a batch has few samples: one of them may be quiet."""
        if known.was_constant:
            return  # another contract
        if known.num_known < _KNOWN:
            known.lowest = min(size, known.lowest) if known.num_known else size
            known.highest = max(size, known.highest)
            known.num_known += 1
        elif size > _FACTOR * known.highest > 0 or size < known.lowest / _FACTOR:
            evidence = f"up to {size:.3g} in this batch, {known.lowest:.3g} to {known.highest:.3g} in the first steps"
            severity = "warning" if is_few and size < known.lowest else "alarm"
            self.broken("input-out-of-range", step, evidence, subject=name, severity=severity)

    def _check_bytes(self, step: Step, name: str, known: _History, values: Tensor, low: float, high: float) -> None:
        """Warnings, for a model may divide by 255 itself, or multiply."""
        is_picture = values.dim() == 4 and (values.shape[1] in (1, 3, 4) or values.shape[3] in (1, 3, 4))
        known.num_dark = known.num_dark + 1 if is_picture and low >= 0 and 0 < high <= _TWICE else 0
        if known.num_dark >= _BYTES_STEPS:
            evidence = f"pictures of {low:.2g} to {high:.2g}, {known.num_dark} steps in a row: divided by 255 twice?"
            self.broken("input-out-of-range", step, evidence, subject=name, severity="warning")
        is_flat = is_picture and 0 < high - low < _FLAT * max(abs(low), abs(high))
        known.num_flat = known.num_flat + 1 if is_flat else 0
        if known.num_flat >= _BYTES_STEPS:
            evidence = f"pictures of {low:.4g} to {high:.4g}, {known.num_flat} steps in a row: all but one grey"
            self.broken("input-out-of-range", step, evidence, subject=name, severity="warning")
        is_byte = is_picture and low >= 0 and _BYTES <= high <= 255 and known.last is not None
        whole = is_byte and known.last is not None and torch.equal(known.last, known.last.round())
        known.num_bytes = known.num_bytes + 1 if whole else 0
        if known.num_bytes >= _BYTES_STEPS:
            evidence = f"floating pictures of whole numbers from {low:g} to {high:g}, {known.num_bytes} steps in a row"
            self.broken("input-out-of-range", step, evidence, subject=name, severity="warning")

    def _check_zeros(self, step: Step, name: str, known: _History, values: Tensor) -> None:
        """Of times and other small inputs. A warning, for one step may be all that is learned, and 0 may be meant."""
        is_time = _IS_TIME.search(name.lower()) is not None
        if not is_time and _MAY_BE_ZERO.search(name.lower()):
            return
        if values.numel() >= _LABELS and known.num_constant >= _CONSTANT_STEPS and float(values.flatten()[0]) == 0:
            evidence = f"all {values.numel()} are 0, {known.num_constant} steps in a row"
            self.broken("constant-input", step, evidence, subject=name, severity="warning")

    def _check_labels(self, step: Step, name: str, known: _History, values: Tensor) -> None:
        is_long = known.was_constant and known.run >= _LABEL_STEPS
        if is_long and values.numel() >= _LABELS and not known.was_shared:
            evidence = f"all {values.numel()} labels of the batch are {values.reshape(-1)[0].item()}"
            evidence += f", {known.run} steps in a row"
            self.broken("labels-constant", step, evidence, subject=name)

    def _check_constant(self, step: Step, main: str | None) -> None:
        if main is None or main not in self._histories:
            return
        tensor, known = step.inputs()[main], self._histories[main]
        is_large = tensor.numel() // max(1, tensor.shape[0]) >= _LARGE_SAMPLE
        if is_large and known.num_constant >= _CONSTANT_STEPS and known.last is not None:
            evidence = f"every element is {float(known.last[0]):.6g}, {known.num_constant} steps in a row"
            self.broken("constant-input", step, evidence, subject=main)

    def _check_repeats(self, step: Step, repeats: dict[str, bool], main: str | None) -> None:
        large = {n for n, t in step.inputs().items() if n in repeats and t.numel() >= _LARGE_SAMPLE}
        varied = {n for n in large if not self._histories[n].was_constant}
        if main is None or main not in repeats:
            return
        known = self._histories[main]
        labels = [n for n in repeats if _IS_LABEL.search(n.lower()) and n != main]
        inputs = [n for n in large if step.inputs()[n].is_floating_point()]  # a grid of coordinates may stay
        is_all = main in varied and all(repeats[name] for name in inputs)
        other = is_all and not known.was_shared and any(not repeats[name] for name in labels)
        self._num_other_labels = self._num_other_labels + 1 if other else 0
        if self._num_other_labels >= _OTHER_LABELS:
            evidence = f"the same contents {known.run} steps in a row, with other labels each time"
            self.broken("batch-repeats", step, evidence, subject=main)
        if known.run >= _REPEATS and known.num_varied >= _VARIED and main in varied:
            evidence = f"the same contents {known.run} steps in a row, after {known.num_varied} that differed"
            self.broken("batch-repeats", step, evidence, subject=main)
        is_first = main in varied and not known.was_shared and LOADERS.is_first(step.inputs()[main])
        self._num_first = self._num_first + 1 if is_first else 0
        if self._num_first >= _FIRST_BATCHES and known.run > self._num_first and all(repeats[name] for name in inputs):
            evidence = f"the same contents {known.run} steps in a row, each time the first batch of a new iterator"
            self.broken("batch-repeats", step, evidence, subject=main)
        for name in varied:
            others = [repeats[other] for other in large | set(labels) if other != name]
            self._check_workers(step, name, self._histories[name], any_other_repeats=not others or any(others))

    def _check_workers(self, step: Step, name: str, known: _History, *, any_other_repeats: bool) -> None:
        """Each of several workers draws the same: what one has drawn comes once from each of them. Where all else of
        the batch differs, the second run need not have come to its end."""
        last = known.runs[-2:]
        has_ended = len(last) == 2 and last[0] == last[1] >= 2 and known.run == 1
        is_second = len(last) >= 1 and last[-1] == known.run >= 2 and not any_other_repeats
        if (has_ended or is_second) and not known.was_shared and not known.returns:
            evidence = f"the same contents {last[-1]} steps in a row, twice, each time in a tensor of its own"
            is_long = len(known.runs) > 2 and len(set(known.runs[-3:])) == 1
            severity = "alarm" if is_long else "warning"  # a few prompts may take turns
            self.broken("workers-repeat", step, evidence, subject=name, severity=severity)
