"""Numerics of any PyTorch training loop. Starts from what you see:

- *The loss is NaN, now and then, deep in a run.* Wrap the step in a `Watch`. It costs one norm a step, stops before
  anything bad is kept, repeats the step under tracing, and raises `NonFiniteError` with a `Verdict`: operator, module,
  line, sample, operands, and what to change.

        watch = Watch(model, optimizer)
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

  A body that stays where it is: `for attempt in watch.attempts(batch=batch):`, and in it `with attempt:`. One
  micro-batch of an accumulation is a step, too, and so is one that raises because of a NaN.

- *This step is NaN, every time.* `explain(lambda: train_one(batch), model=model, batch=batch)` returns the `Verdict`.

- *It is finite, and wrong.* The same watch asks each step what `CONTRACTS` lists: `watch.findings`.

- *It is not NaN yet, but something grows, dies or stands still.* `LayerStatistics` measures each layer's output and
  gradient, `ParameterStatistics` each parameter's gradient and update. Write them with a `RecordWriter`; `examine`
  judges a `History` of them by rules with sources, `HealthWatch` does so while the run is under way.

- *I want to see it.* `diagnostics.board` draws the same records in TensorBoard.

Needs torch and nothing else; TensorBoard only where it is drawn. Whatever is not exported here or by a sub-package
(`board`, `contracts`, `files`, `health`, `incidents`, `records`, `statistics`, `tracing`, `watching`) may change
without notice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics.contracts import CONTRACTS
    from diagnostics.errors import ContractError, NonFiniteError
    from diagnostics.health import HealthWatch, examine
    from diagnostics.modules import eagerly, leaf_modules, models_in, optimizers_in
    from diagnostics.patching import replaced
    from diagnostics.records import History, RecordWriter, read_records
    from diagnostics.statistics import LayerStatistics, ParameterStatistics, TensorStatistics
    from diagnostics.tensors import all_finite
    from diagnostics.tracing import explain
    from diagnostics.verdict import (
        CAUSES,
        EXCEPTIONS,
        PHASES,
        Verdict,
        nearby,
        number_text,
        read_verdict,
        read_verdict_file,
    )
    from diagnostics.watching import Watch

__all__ = [
    # Where a value that is not finite was born
    "Watch",
    "explain",
    "NonFiniteError",
    "Verdict",
    "PHASES",
    "EXCEPTIONS",
    "CAUSES",
    "read_verdict",
    "read_verdict_file",
    # What a step must keep
    "CONTRACTS",
    "ContractError",
    # What each layer and parameter does
    "LayerStatistics",
    "ParameterStatistics",
    "TensorStatistics",
    # What a run recorded, and what is wrong with it
    "RecordWriter",
    "read_records",
    "History",
    "examine",
    "HealthWatch",
    # Tools that stand on their own
    "all_finite",
    "leaf_modules",
    "models_in",
    "optimizers_in",
    "eagerly",
    "replaced",
    "nearby",
    "number_text",
]

_HOMES = (  # of the public names
    *("contracts", "errors", "health", "modules", "patching", "records"),
    *("statistics", "tensors", "tracing", "verdict", "watching"),
)
_ROOMS = (*_HOMES, "board", "files", "incidents")

if not TYPE_CHECKING:  # for a type checker it would make any name a public one

    def __getattr__(name: str) -> Any:
        """The public names, loaded when the first of them is asked for: with them comes torch, for which neither
        `diagnostics.files` nor the help of a command waits."""
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for room in (import_module(f"{__name__}.{room}") for room in _HOMES):
            globals().update({public: getattr(room, public) for public in __all__ if hasattr(room, public)})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
