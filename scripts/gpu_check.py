"""What the real model does on this machine's GPU, written to docs/benchmarks.md. Without one: "not measured".

    python scripts/gpu_check.py                  # everything; about an hour
    python scripts/gpu_check.py --part speed     # a part alone: speed, options or stages
    python scripts/gpu_check.py --minutes 12     # what tells most first, as much as fits, into gpu-check/

Full SDXL with random weights, EMA and gradient checkpointing, as configs/sdxl-4xh100.yaml trains it, on one GPU.
Nothing is written that was not measured: each part replaces its own section, with date, hardware and command.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout, installed or not

from scripts.gpu_measuring import (
    GIB,
    ROOT,
    StageFigures,
    StepFigures,
    config_in_folder,
    open_loops,
    option_seconds,
    stage_rows,
    step_figures,
    trip_figures,
)
from scripts.gpu_minutes import Note, Part, measure_parts, not_measured
from shadowlab.bench.flops import training_flops, unet_without_memory
from shadowlab.bench.step import OPTIONS, measure_encoding
from shadowlab.encoded_batch import DOWNSCALE

PRECISIONS = ("fp32", "tf32", "bf16")


def main(arguments: Sequence[str] | None = None) -> int:
    words = _parser().parse_args(arguments)
    if words.minutes is not None:
        return in_minutes(words)
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    parts = {"speed": speed, "options": options, "stages": stages}
    for name, part in parts.items():
        if words.part in (name, "all"):
            body = part(words)
            print(body)
            write_section(words.output, f"gpu-{name}", f"{_heading(words, name)}\n\n{body}")
    return 0


def in_minutes(words: argparse.Namespace) -> int:
    """As many parts as fit into --minutes, the most telling first; each says so where it was not measured."""
    parts = parts_in_order(words)
    if not torch.cuda.is_available():
        not_measured(parts, "no CUDA device")
        return 0
    outcomes = measure_parts(parts, 60.0 * words.minutes, words.record)
    body = "\n".join(f"- {outcome}" for outcome in outcomes)
    write_section(words.output, "gpu-minutes", f"{_heading(words, f'minutes {words.minutes:g}')}\n\n{body}")
    return 0


def parts_in_order(words: argparse.Namespace) -> list[Part]:
    """Seconds are guesses for an H100; `measure_parts` corrects them by what the first parts took."""
    parts = [Part(f"step in {name}", 120.0, partial(_step_part, words, name)) for name in ("bf16", "fp32")]
    parts.append(Part("trip to a verdict", 90.0, partial(_trip_part, words)))
    parts.append(Part("step in tf32", 120.0, partial(_step_part, words, "tf32")))
    parts.append(Part("latents in memory", 60.0, partial(_encoding_part, words)))
    parts += [
        Part(f"option {name}", 90.0, partial(_option_part, words, name)) for name, given in OPTIONS.items() if given
    ]
    parts.append(Part("three stages", 900.0, partial(_stages_part, words)))
    return parts


def _step_part(words: argparse.Namespace, precision: str, note: Note, left: float) -> None:
    flops = training_flops(unet_without_memory("sdxl"), words.batch, words.image_size // DOWNSCALE)
    with config_in_folder(words, precision) as config:
        step_figures(config, words.rounds, flops, note)


def _trip_part(words: argparse.Namespace, note: Note, left: float) -> None:
    with config_in_folder(words, "bf16") as config:
        for name, value in trip_figures(open_loops(config)).items():
            note(name, value)


def _encoding_part(words: argparse.Namespace, note: Note, left: float) -> None:
    with config_in_folder(words, "bf16") as config:
        share = measure_encoding(config, words.rounds)
        note("share of a step that encoding takes", share.saved)


def _option_part(words: argparse.Namespace, name: str, note: Note, left: float) -> None:
    with config_in_folder(words, "bf16", *OPTIONS[name]) as config:
        first, seconds = option_seconds(config, words.rounds)
        note("first step s", first)
        note("s a step", seconds)


def _stages_part(words: argparse.Namespace, note: Note, left: float) -> None:
    for row, _ in stage_rows(words, left):
        note(row.command, {"exit code": row.exit_code, "seconds": round(row.seconds, 1)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "options", "stages", "all"), default="all")
    parser.add_argument("--minutes", type=float, help="stop in time: as many parts as fit")
    parser.add_argument("--record", type=Path, default=ROOT / "gpu-check", help="folder of what --minutes measures")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of timed steps")
    parser.add_argument("--overfit-steps", type=int, default=4000, help="at most, in --part stages")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser


# Speed and memory of a step


def speed(words: argparse.Namespace) -> str:
    flops = training_flops(unet_without_memory("sdxl"), words.batch, words.image_size // DOWNSCALE)
    rows = []
    for precision in PRECISIONS:
        with config_in_folder(words, precision) as config:
            rows.append(step_figures(config, words.rounds, flops))
            print(step_table(rows[-1:]), flush=True)
    with config_in_folder(words, "bf16") as config:
        share = measure_encoding(config, words.rounds)
    return "\n\n".join(
        [
            f"{flops / 1e12:.1f} TFLOP in a step, counted without what gradient checkpointing repeats.",
            step_table(rows),
            synchronisation_lines(rows),
            f"Latents in memory (bf16): {share.about}: encoding takes {share.saved:.1%} of the step that does it, "
            "which a latent cache saves.",
        ]
    )


# Options


def options(words: argparse.Namespace) -> str:
    """One after the other: two models of this size do not fit next to each other."""
    seconds: dict[str, float] = {}
    compiled_seconds = None
    for name, assignments in {"no option": [], **{name: one for name, one in OPTIONS.items() if one}}.items():
        with config_in_folder(words, "bf16", *assignments) as config:
            first, seconds[name] = option_seconds(config, words.rounds)
            compiled_seconds = first if config.model.compile else compiled_seconds
    base = seconds["no option"]
    rows = [[name, f"{value:.3f}", f"{value / base:.3f}"] for name, value in seconds.items()]
    note = f"The first compiled step took {compiled_seconds:.0f} s. bf16, one after the other."
    return f"{markdown_table(['option', 'seconds a step', 'ratio'], rows)}\n\n{note}"


# The three stages


def stages(words: argparse.Namespace) -> str:
    """check-forward, overfit of 16 rendered samples and train, through the command line, with the embedded VAE."""
    rows = []
    for row, errors in stage_rows(words):
        rows.append(row)
        print(stage_table([row]), errors, flush=True)
    return stage_table(rows)


# Text


def step_table(rows: Sequence[StepFigures]) -> str:
    header = ["precision", "seconds a step", "to a bare loop", "Watch on / off", "with statistics"]
    header += ["share of the chip's rate", "peak GiB", "planned GiB", "synchronisations", "with statistics"]
    return markdown_table(
        header,
        [
            [
                row.precision,
                f"{row.seconds:.3f}",
                f"{row.seconds / row.bare_seconds:.3f}",
                f"{row.seconds / row.unwatched_seconds:.3f}",
                f"{row.statistics_seconds / row.seconds:.3f}",
                "rate not known" if row.share_of_chip is None else f"{row.share_of_chip:.1%}",
                f"{row.peak_gib:.1f}",
                f"{row.planned_gib:.1f}",
                str(row.synchronisations.total()),
                str(row.statistics_synchronisations.total()),
            ]
            for row in rows
        ],
    )


def synchronisation_lines(rows: Sequence[StepFigures]) -> str:
    found = Counter[str]()
    for row in rows:
        found |= row.synchronisations | row.statistics_synchronisations
    listed = ", ".join(f"{place} x {number}" for place, number in sorted(found.items())) or "none"
    return f"Where the host waits for the GPU: {listed}."


def stage_table(rows: Sequence[StageFigures]) -> str:
    return markdown_table(
        ["command", "exit code", "seconds", "result"],
        [
            [
                f"`{row.command}`",
                str(row.exit_code),
                f"{row.seconds:.0f}",
                ", ".join(f"{k} {v:.4g}" for k, v in row.summary.items() if type(v) in (int, float))
                or str(row.summary.get("error", "")),
            ]
            for row in rows
        ],
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def write_section(file: Path, name: str, body: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the file has no such place.
    """
    text = file.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{file}: needs one line `{start}` and after it one `{end}`, between which the figures go")
    head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
    file.write_text(f"{head}\n{body}\n{tail}", encoding="utf-8")


def _heading(words: argparse.Namespace, part: str) -> str:
    device = torch.cuda.get_device_properties(0)
    command = f"python scripts/gpu_check.py --part {part} --image-size {words.image_size} --batch {words.batch}"
    memory = f"{device.total_memory / GIB:.0f} GiB"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {device.name} ({memory}), {versions}; `{command}`"


if __name__ == "__main__":
    sys.exit(main())
