"""What tests/test_same_numbers.py reads: made once, by the code as it was before it was divided into rooms.

    git worktree add /opt/shadowlab 9915517
    PYTHONPATH=/opt/shadowlab OMP_NUM_THREADS=1 python tests/old_runs/make.py

The commands are typed in `folder/`, so that every path in its files is relative to there:

    data/ unet/            eight samples of the shipped set, a UNet as a hub has it
    latents/               what `data encode` made of the pictures
    runs/checked, proven   stages.json of a check-forward and of an overfit that passed
    runs/fallen            a checkpoint after step 3, an infinity in the forward of step 5, whose incident is there
    runs/half              float16 without master weights: an incident in the optimizer of step 1

Next to it lies what the same code came to: `resumed.jsonl`, records of `runs/fallen` resumed from step 3 to 6;
`cached.jsonl`, those of a run on the latents; `recorded.json`, digests, names, texts and random draws;
`expected.safetensors`, tensors that another processor may round otherwise. TensorBoard's files and pictures are left
out: they are views.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent
FOLDER = HERE / "folder"
RECORDED = HERE / "recorded.json"
RECORDS = {"resumed": HERE / "resumed.jsonl", "cached": HERE / "cached.jsonl"}
EXPECTED = HERE / "expected.safetensors"
COMMIT = "9915517"

SMALL = {
    "block_out_channels": (4, 4),
    "norm_num_groups": 2,
    "attention_head_dim": (1, 2),
    "cross_attention_dim": 4,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 4 + 6 * 4,
}
_SET = {
    "data.image_size": 32,
    "train.batch_size": 2,
    "train.validate_every": 3,
    "train.log_every": 1,
    "checkpoint.every_steps": 3,
    "diagnostics.statistics_every": 3,
    "diagnostics.histograms_every": 3,
    "optimizer.warmup_steps": 2,
    "validation.num_samples": 2,
    "validation.num_noises": 1,
    "validation.timesteps": "[0.0, 0.5]",
    "validation.light_sweep": "false",
    "overfit.num_samples": 2,
    "overfit.max_steps": 2,
    "overfit.min_r2": -1e9,
    "overfit.min_soft_iou": 0,
}
WORDS = ["--weights", "unet", "--data", "data", "--device", "cpu"]
WORDS += [word for key, value in _SET.items() for word in ("--set", f"{key}={value}")]
FALL_AT = 4  # 0-based step
RESUME = ["train", "--run", "fallen", "--resume", "--skip-stages"]
CACHED = ["train", *WORDS, "--run", "cached", "--set", "data.latents=latents", "--max-steps", "3"]
CHECK = ["check-forward", *WORDS, "--json"]
OWN = ["--object", "data/objects/obj_0002_light_0.png", "--mask", "data/masks/obj_0002_light_0.png"]
OWN += ["--theta", "30", "--phi", "10", "--size", "4"]
SHOWN = {"health": ([], 1), "inspect": (["--by", "activation.headroom_bits"], 0)}
"""Commands that answer from the records of `runs/fallen` alone, with their options and exit codes."""
WHY = {"fallen": ["why", "runs/fallen", "--json"], "half": ["why", "runs/half", "--json"]}

LIGHTS = ((0.0, 0.0, 2.0), (30.0, 359.0, 4.0), (45.0, 123.4, 8.0))
PICTURES = (0, 41, 79)  # of the embedded set
SIZE, REDUCED = 128, 16  # pixels a side: as it is shipped, and reduced, which rounds
HASHED = {
    "tiny": {"preset": "tiny"},
    "seed-fp16": {"preset": "seed-fp16", "options": {"allow_unsafe": True}},
    "sdxl": {"preset": "sdxl"},
    "sdxl-4xh100": {"preset": "sdxl-4xh100"},
    "bf16": {"assignments": ["precision=bf16"]},
    "folder": {"assignments": ["model.weights=unet"]},
    "folder for all": {"assignments": ["model.weights=unet", "model.vae=same"]},
}
"""What `load_config` is given; the folder is `unet/` of `FOLDER`."""

# What of the resumed run's weights, averages and moments is kept whole, for processors that round otherwise.
KEPT = re.compile(
    r"conv_in\.weight|class_embedding\.linear_2\.weight|mid_block.*attn1\.to_q.*|conv_out.*|.*norm1\.bias"
)


def machine() -> dict[str, Any]:
    """What decides the last bits."""
    found = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    return found | {"threads": torch.get_num_threads(), "processor": _processor()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = dict(line.replace("\t", "").split(": ", 1) for line in reversed(lines) if ": " in line)
    return " ".join(named.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping"))


@contextlib.contextmanager
def drawn() -> Iterator[list[str]]:
    """Seed, purpose and counters of all that is drawn at random meanwhile, but orders: a process remembers those."""
    from shadowlab import seeding

    original, texts = seeding.derive_seed, []

    def noted(*arguments: Any) -> int:
        if arguments[1] != "order":
            texts.append("/".join(map(str, arguments)))
        return original(*arguments)

    with mock.patch.object(seeding, "derive_seed", noted):
        yield texts


@contextlib.contextmanager
def falling(telemetry: Any) -> Iterator[None]:
    """The weights of a convolution in the middle are multiplied by 1e38 before step `FALL_AT`."""
    original = telemetry.step

    def spoiled(self: Any, batches: Any, place: Any, **named: Any) -> Any:
        if place.step == FALL_AT:
            self._trainee.unet.mid_block.resnets[0].conv1.weight.data.mul_(1e38)
        return original(self, batches, place, **named)

    with mock.patch.object(telemetry, "step", spoiled):
        yield


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of a whole state dict, whatever its order."""
    from scripts.compare_runs import digest

    rows = [f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def summary_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """First, last and mean of each tensor, float64 (n, 3)."""
    flat = [tensor.detach().flatten().double() for tensor in tensors.values()]
    return torch.stack([torch.stack([one[0], one[-1], one.mean()]) for one in flat])


def pictures_of(dataset: Any) -> dict[str, Tensor]:
    """What some samples of a data set hold, by `ID name`."""
    fields = {"object": "object_image", "mask": "mask", "shadow": "shadow", "light": "light"}
    samples = [dataset[i] for i in PICTURES]
    return {f"{one.id} {name}": getattr(one, field) for one in samples for name, field in fields.items()}


def checkpoint_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """`unet/NAME`, `ema/NAME`, `optimizer/NAME` of all that a checkpoint holds."""
    files = {file: file.parent.name if file.parent != checkpoint else file.stem for file in checkpoint.rglob("*.saf*")}
    return {f"{part}/{name}": t for file, part in sorted(files.items()) for name, t in load_file(file).items()}


def records_of(metrics: Path, after: int = -1) -> list[dict[str, Any]]:
    """What the records of steps after `after` have measured; a value on the edge of a histogram's bin may change it."""
    from scripts.compare_runs import measured

    records = [measured(json.loads(line), ignored=["histograms"]) for line in metrics.read_text().splitlines()]
    return [record for record in records if record.get("step", 0) > after]


def write_records(name: str, records: list[dict[str, Any]]) -> None:
    RECORDS[name].write_text("".join(f"{json.dumps(record)}\n" for record in records))


def plain_why(document: dict[str, Any]) -> dict[str, Any]:
    """Of what `why --json` says, all that does not follow from rounding or from where the code lies."""
    from scripts.compare_runs import measured

    return {
        "verdict": measured(document["verdict"], ignored=["witness"]),
        "outcomes": [[one["kind"], one["name"], one["result"]] for one in document["counterfactuals"]],
        "left out": document["left_out"],
        "conclusion": re.sub(r"\d+(\.\d+)?", "N", document["conclusion"]),
    }


def planned(config: Any) -> dict[str, Any]:
    """What `plan` says of two GPUs: its text without figures, and its figures."""
    from shadowlab.planning.plan import plan_memory
    from shadowlab.planning.report import format_plan, plan_document

    plan = plan_memory(config, processes=2)
    lines = [" ".join(re.sub(r"\d[\d.,]*", "N", line).split()) for line in format_plan(plan, 80 * 10**9).splitlines()]
    return {"text": lines, "figures": plan_document(plan, 80 * 10**9)}


def checks_of(document: dict[str, Any]) -> dict[str, Any]:
    """Names of check-forward's path and checks, whether they passed, and how the model answers to the conditions."""
    return {
        "path": [[row[key] for key in ("stage", "tensor", "form", "shape", "dtype")] for row in document["path"]],
        "checks": [[check["name"], check["passed"]] for check in document["checks"]],
        "answers": [check["seen"] for check in document["checks"] if " answer to " in check["name"]],
    }


def bare_verdict(text: str) -> list[str]:
    """A printed verdict less places, operands, why one is zero, and what follows from the machine."""
    from scripts.compare_runs import without_places

    lines = without_places(text.removeprefix("-")).splitlines()  # inf as well as -inf
    return [line for line in lines if not line.strip().startswith(("operands", "zero"))]


# --- the rest needs the code of that commit --------------------------------------------------------------------------


def shadowlab(*words: str, code: int = 0) -> str:
    from typer.testing import CliRunner

    from cli.main import app

    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def copy_pictures(folder: Path) -> None:
    """Four objects of the shipped set under two lights each."""
    from shadowlab.data.dataset import EMBEDDED_PATH

    known = json.loads((EMBEDDED_PATH / "metadata.json").read_text())
    chosen = [name for name in sorted(known) if name[:8] < "obj_0004" and name[-1] in "01"]
    for role in ("objects", "masks", "shadows"):
        (folder / role).mkdir(parents=True)
        for name in chosen:
            shutil.copyfile(EMBEDDED_PATH / role / f"{name}.png", folder / role / f"{name}.png")
    (folder / "metadata.json").write_text(json.dumps({name: known[name] for name in chosen}, indent=1) + "\n")


def make_folder() -> dict[str, Any]:
    """Fill FOLDER; what the runs there came to."""
    from shadowlab.config_files import load_config

    from shadowlab.training.telemetry import Telemetry
    from tests import tiny

    copy_pictures(Path("data"))
    tiny.save_hub_unet(Path("unet"), **SMALL)
    shadowlab("data", "encode", "--data", "data", "--out", "latents", "--set", "data.image_size=32")
    recorded: dict[str, Any] = {"check-forward": checks_of(json.loads(shadowlab(*CHECK, "--run", "checked")))}
    recorded["check-forward of one's own"] = checks_of(json.loads(shadowlab(*CHECK, *OWN, "--run", "own")))
    shadowlab("overfit", *WORDS, "--run", "proven")
    shadowlab(*CACHED)
    write_records("cached", records_of(Path("runs/cached/metrics.jsonl")))
    with falling(Telemetry):
        shadowlab("train", *WORDS, "--run", "fallen", "--max-steps", "6", "--skip-stages", code=1)
    half = ["--precision", "fp16-pure", "--allow-unsafe", "--set", "train.ema_decay=null"]
    shadowlab("train", *WORDS, "--run", "half", *half, "--skip-stages", code=1)
    recorded["plan"] = planned(load_config(file="runs/fallen/config.yaml"))
    clean()
    return recorded


def clean() -> None:
    """Take out what is a view, what is made again, and what names this machine."""
    for name in ("cached", "own"):
        shutil.rmtree(Path("runs", name))
    for name in ("checked", "proven"):
        for item in Path("runs", name).iterdir():
            if item.name not in ("config.yaml", "environment.json", "stages.json"):
                shutil.rmtree(item) if item.is_dir() else item.unlink()
    for run in Path("runs").iterdir():
        for view in ("tensorboard", "samples"):
            shutil.rmtree(run / view, ignore_errors=True)
        (run / ".lock").unlink(missing_ok=True)
        environment = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps(environment | {"platform": "Linux"}, indent=2) + "\n")


def go_on(expected: dict[str, Tensor]) -> dict[str, Any]:
    """What becomes of the folder's runs: a resume, the incidents' explanations."""
    from scripts.compare_runs import digest

    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(FOLDER, Path(place) / "folder")
        with contextlib.chdir(copy):
            why = {name: plain_why(json.loads(shadowlab(*words))) for name, words in WHY.items()}
            shown = {
                name: json.loads(shadowlab(name, "runs/fallen", "--json", *words, code=code))
                for name, (words, code) in SHOWN.items()
            }
            with drawn() as texts:
                shadowlab(*RESUME)
            write_records("resumed", records_of(Path("runs/fallen/metrics.jsonl"), after=3))
            checkpoint = Path("runs/fallen/checkpoints/step-00000006")
            tensors, state = checkpoint_tensors(checkpoint), json.loads((checkpoint / "state.json").read_text())
            files = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())
    expected.update({f"resumed/{name}": t for name, t in tensors.items() if KEPT.fullmatch(name.partition("/")[2])})
    return {
        "why": why,
        "shown": shown,
        "resumed": {
            "tensors": {name: digest(tensor)[:16] for name, tensor in tensors.items()},
            "files": files,
            "state": state,
            "drawn": texts,
        },
    }


def numbers(expected: dict[str, Tensor]) -> dict[str, Any]:
    """Weights, order, draws, pictures, names."""
    from shadowlab.config_files import load_config, preset_names
    from shadowlab.data.dataset import open_dataset
    from shadowlab.light import EMBEDDING_DIM, embed_light
    from shadowlab.unet import load_unet

    from scripts.compare_runs import digest
    from shadowlab.data.order import sample_indices
    from shadowlab.data.split import split_by_object
    from shadowlab.seeding import derive_seed, normal
    from shadowlab.training.step import StepPlace, sample_times

    unet = load_unet("random", "tiny", in_channels=9, widening="zero", embedding_dim=EMBEDDING_DIM, seed=0)
    dataset = open_dataset("embedded", 128)
    split = split_by_object(dataset.object_ids, load_config().data.validation_fraction, 0)
    expected["weights"] = summary_of(unet.state_dict())
    expected["noise"] = torch.stack([normal((4, 4, 4), 0, "noise", position) for position in range(8)])
    expected["light"] = embed_light(torch.tensor(LIGHTS))
    pictures = {name: digest(tensor) for name, tensor in pictures_of(open_dataset("embedded", SIZE)).items()}
    expected |= {f"reduced/{name}": t for name, t in pictures_of(open_dataset("embedded", REDUCED)).items()}
    presets = {name: load_config(preset=name, options={"allow_unsafe": True}) for name in preset_names()}
    with contextlib.chdir(FOLDER):
        hashes = {name: load_config(**given).model_hash() for name, given in HASHED.items()}
    return {
        "initial weights": {"digest": digest_of(unet.state_dict()), "shapes": shapes_of(unet.state_dict())},
        "fingerprint": dataset.fingerprint(),
        "split": [split.train, split.validation],
        "order": sample_indices(0, 500, len(split.train), 0),
        "times": [sample_times(0, torch.arange(8 * s, 8 * s + 8), StepPlace(s, 8 * s, 8)).tolist() for s in range(3)],
        "seeds": [derive_seed(0, "noise", position) for position in range(8)],
        "pictures": pictures,
        "model hashes": hashes,
        "presets": {name: config.model_dump(mode="json") for name, config in presets.items()},
    }


def seed_fp16() -> list[str]:
    """The verdict of the README's first command."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        shadowlab("train", "--config", "seed-fp16", "--allow-unsafe", code=1)
        [verdict] = Path("runs").rglob("verdict.txt")
        return bare_verdict(verdict.read_text())


def main() -> None:
    sys.path.append(str(HERE.parents[1]))  # for scripts; everything else comes from the old checkout
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    expected: dict[str, Tensor] = {}
    with contextlib.chdir(FOLDER):
        recorded = {"commit": COMMIT, "machine": machine(), **make_folder()}
    recorded |= go_on(expected) | numbers(expected) | {"seed-fp16": seed_fp16()}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    save_file(expected, EXPECTED)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
