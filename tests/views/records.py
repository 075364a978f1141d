"""Records of small runs, written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.records.lines import RecordWriter

ZEROS = {"mean": 0.0, "std": 1.0, "fraction_zero": 0.0, "num_nonfinite": 0}


def statistics(norm: float, headroom: float = 100.0) -> dict[str, float]:
    return {"norm": norm, **ZEROS, "max_abs": norm / 2, "headroom_bits": headroom}


def step(number: int, norms: Mapping[str, float], *, kind: str = "train", **more: Any) -> dict[str, Any]:
    """A step that measured layers whose activations and gradients have these norms; one parameter each."""
    return {
        "kind": kind,
        "step": number,
        "loss": 1.0 / number,
        "learning_rate": 1e-3,
        "samples": [f"sample-{number}"],
        "layers": {name: {"activation": statistics(n), "gradient": statistics(n / 10)} for name, n in norms.items()},
        "parameters": {
            f"{name}.weight": {"gradient_norm": n / 10, "update_ratio": 1e-3 * n} for name, n in norms.items()
        },
    } | more


def write_run(folder: Path, records: Sequence[dict[str, Any]], *, cut: bool = False) -> Path:
    """A run folder with these records; `cut`: killed in the middle of one more line."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    writer = RecordWriter(folder / "metrics.jsonl")
    for record in records:
        writer.write(record)
    writer.close()
    if cut:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 99, "los')
    return folder
