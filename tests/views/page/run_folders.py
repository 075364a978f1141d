"""Run folders written by hand, as the stages leave them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diagnostics.records.lines import RecordWriter

HOSTILE = "<script>alert('x')</script>"

VERDICT: dict[str, Any] = {
    "phase": "forward",
    "exception": "overflow",
    "cause": "overflow",
    "op": "exp",
    "module": HOSTILE,
    "parameter": None,
    "source": None,
    "samples": [1],
    "sample_ids": [HOSTILE],
    "value": "inf",
    "witness": {
        "index": [1, 2],
        "shape": [4, 8],
        "operands": {"self": 12.5, "other": "-inf", "tiny": 1e-6},
        "dtype": "float16",
        "limits": {"max": 65504.0, "smallest_normal": 6.103515625e-05, "eps": 0.0009765625},
    },
    "path": ["exp", "(3 more)", "mean", "loss"],
    "fix": "subtract the maximum </script><script>alert(1)</script> (pytorch#68425)",
    "step": 6,
    "rank": None,
    "reproducible": True,
}


def layers(*names: str, norm: float = 1.0, headroom: float = 10.0) -> dict[str, Any]:
    return {
        name: {"activation": {"norm": norm * (i + 1), "headroom_bits": headroom - i}, "gradient": {"norm": norm / 8}}
        for i, name in enumerate(names)
    }


def step(number: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": number, "loss": loss, "grad_norm": 2 * loss, "learning_rate": 1e-4, **more}


def make_run(path: Path, records: Iterable[Mapping[str, Any]] = (), **files: Any) -> Path:
    """files: `stages` and `environment` as objects, `config` as text."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(files.get("config", "precision: fp32\ntrain:\n  max_steps: 40\n"))
    for name in ("stages", "environment"):
        if name in files:
            (path / f"{name}.json").write_text(json.dumps(files[name]))
    writer = RecordWriter(path / "metrics.jsonl")
    for record in records:
        writer.write(dict(record))
    writer.close()
    return path


def add_incident(run: Path, verdict: Mapping[str, Any] = VERDICT, name: str = "step-00000007") -> Path:
    folder = run / "incidents" / name
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps(verdict))
    return folder


def add_pictures(run: Path, amount: int) -> None:
    (run / "samples").mkdir()
    for number in range(amount):
        Image.new("RGB", (64, 32), (number, 90, 120)).save(run / "samples" / f"step-{number:08d}.png")


def stage(passed: bool = True, **summary: Any) -> dict[str, Any]:
    return {
        "passed": passed,
        "model_hash": "0",
        "shadowlab_version": "0.1.0",
        "finished": "2026-01-31T09:30:00+00:00",
        "summary": summary,
    }
