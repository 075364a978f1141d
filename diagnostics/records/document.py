"""The reference of what a run's records say, made from their types: `python -m diagnostics.records.document`."""

import ast
import inspect
import re
import textwrap
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from diagnostics.records.kinds import (
    OPEN_KEYS,
    WORDS,
    ChartLine,
    ChartRecord,
    Evaluation,
    FindingRecord,
    Header,
    Health,
    Incident,
    MetricRecord,
    Record,
    Stage,
    TrainingStep,
)
from diagnostics.statistics import Histogram, ParameterNumbers, TensorStatistics
from diagnostics.verdict import Verdict

KINDS: dict[str, type] = {
    "header": Header,
    "training step": TrainingStep,
    "evaluation": Evaluation,
    "incident": Incident,
    "health": Health,
    "stage": Stage,
}
"""By the title of its section."""

PARTS: dict[tuple[type, str], type] = {
    (Header, "charts"): ChartRecord,
    (Header, "metrics"): MetricRecord,
    (ChartRecord, "curves"): ChartLine,
    (TrainingStep, "layers"): TensorStatistics,
    (TrainingStep, "parameters"): ParameterNumbers,
    (TrainingStep, "histograms"): Histogram,
    (Incident, "verdict"): Verdict,
    (Health, "findings"): FindingRecord,
}
"""What the values of a key, at the innermost, hold: the type that describes their keys."""

_TITLES: dict[type, str] = {
    ChartRecord: "A chart of the header",
    MetricRecord: "A metric of the header",
    ChartLine: "A curve of a chart",
    TensorStatistics: "Statistics of a layer",
    ParameterNumbers: "Numbers of a parameter",
    Histogram: "A histogram",
    Verdict: "The verdict of an incident",
    FindingRecord: "A finding of the health rules",
}

_OPENING = """\
# Records

<!-- Made from the types: python -m diagnostics.records.document > docs/records.md -->

Everything that a run measures is a line of `metrics.jsonl` in its folder: one JSON object a line, flushed when it is
written. TensorBoard, the tables of the terminal and the page are views that can be rebuilt from these lines.

- JSON has no NaN: numbers that are not finite are the strings `NaN`, `Infinity` and `-Infinity`; text that is one of
  these words has a backslash in front. Other floats keep 7 significant digits. `diagnostics.read_records` undoes this.
- A line that a kill cut short is left out; when the run goes on, it is removed.
- Where a step was written twice, because a run was resumed from an earlier checkpoint, the later line counts.
- A key may be missing: older runs write fewer, and so may your own loop.
- Your own loop writes the same lines with `Watch(model, optimizer, records="runs/mine")` ([your own
  loop](your-loop.md#records-of-your-loop)), or with numbers of its own by `diagnostics.RecordWriter`; every view and
  health rule then reads them:

```python
from pathlib import Path

from diagnostics import HealthWatch, ParameterStatistics, RecordWriter, Watch
from diagnostics.records import TrainingStep
from diagnostics.statistics import recorded_layers, recorded_parameters

watch, parameters, health = Watch(model, optimizer, statistics_every=10), ParameterStatistics(model), HealthWatch()
writer = RecordWriter(Path("metrics.jsonl"))
writer.write({"kind": "header", "stage": "train", "num_samples": num_samples})


def train_one(batch):
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    parameters.before_step()
    optimizer.step()
    parameters.after_step()
    return loss.detach()


for number, batch in enumerate(batches):
    loss = watch.step(lambda: train_one(batch), batch=batch)
    record: TrainingStep = {"kind": "train", "step": number + 1, "loss": loss.item()}
    if watch.is_due(number):
        record["layers"] = recorded_layers(watch.layers)
        record["parameters"] = recorded_parameters(parameters.collect())
    writer.write(record)
    for finding in health.add(record):
        print(finding)
writer.close()
```
"""


def document() -> str:
    """Markdown: a section for each kind of record, one for each type of what they hold."""
    sections = [_OPENING, "## Every record\n\n" + _table(Record)]
    sections += [_section(title.capitalize(), kind) for title, kind in KINDS.items()]
    sections += [_section(_TITLES[part], part) for part in dict.fromkeys(PARTS.values())]
    return "\n".join(sections)


def described(kind: type) -> dict[str, tuple[Any, str]]:
    """Key -> its type, as annotated, and what its docstring says; of a kind without the keys of every record.

    Raises:
        ValueError: a key has no docstring.
    """
    hints = get_type_hints(kind, include_extras=True)
    texts = _attribute_docstrings(kind)
    if kind in KINDS.values():
        hints = {key: hint for key, hint in hints.items() if key not in get_type_hints(Record)}
    missing = [key for key in hints if not texts.get(key)]
    if missing:
        raise ValueError(f"{kind.__name__}: no docstring for {', '.join(missing)}")
    return {key: (hint, texts[key]) for key, hint in hints.items()}


def _section(title: str, kind: type) -> str:
    text = inspect.cleandoc(kind.__doc__ or "")
    named = f"Its `kind` is `{title.lower()}`.\n\n" if title.lower() in WORDS else ""
    return f"## {title}\n\n{text}\n\n{named}{_table(kind)}"


def _table(kind: type) -> str:
    lines = ["| key | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for key, (hint, text) in described(kind).items():
        part = PARTS.get((kind, key))
        more = f" See [{_TITLES[part].lower()}](#{_anchor(_TITLES[part])})." if part else ""
        lines.append(f"| `{key}` | {_type_text(hint)} | {_unit(hint)} | {_cell(text)}{more} |")
    for pattern, meaning in OPEN_KEYS.get(kind, ()):
        lines.append(f"| `{pattern}` | number |  | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """Of a class: the string that stands below each annotated name."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(node, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
            found[ast.unparse(node.target)] = inspect.cleandoc(text.value)
    return found


def _type_text(hint: Any) -> str:
    """A type in the words of JSON: `object of lists of numbers`."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    names = {float: "number", int: "integer", str: "text", bool: "true or false", type(None): "null", Any: "any"}
    if hint in names:
        return names[hint]
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_text(one) for one in arguments)
    if get_origin(hint) in (list, tuple):
        return f"list of {_plural(_type_text(arguments[0]))}"
    if get_origin(hint) is dict:
        return "object" if arguments[1] is Any else f"object of {_plural(_type_text(arguments[1]))}"
    if isinstance(hint, type):
        return "object"
    raise ValueError(f"{hint}: a type that no record has")


def _plural(text: str) -> str:
    if text.startswith(("object", "list")):
        return text.replace("object", "objects", 1).replace("list", "lists", 1)
    return {"text": "texts", "number or null": "numbers or null"}.get(text, f"{text}s")


def _unit(hint: Any) -> str:
    return str(get_args(hint)[1]) if get_origin(hint) is Annotated else ""


def _cell(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("|", "\\|")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


if __name__ == "__main__":
    print(document(), end="")
