"""What an earlier version made stays readable, and goes on to the numbers that it would have come to.

tests/old_runs/make.py tells what was made, and with which commit. Two kinds of comparison:

- Exact, on every machine: names, keys, texts, orders, what is drawn from which seed, hashes of configurations, numbers
  that no rounding touches (uniform draws, decoded pictures).
- Rounded: what passed through matrix products or normal draws, whose last bits depend on the processor's instructions.
  On the processor and the version of torch that made them these are compared bit for bit, too.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from typer.testing import CliRunner

from cli.main import app
from diagnostics.records.lines import read_records
from scripts.compare_runs import digest
from shadowlab.data.order import sample_indices
from shadowlab.data.split import split_by_object
from shadowlab.latents.cache import LatentIndex
from shadowlab.models import load_unet
from shadowlab.runs.folder import SUBFOLDERS
from shadowlab.seeding import derive_seed, normal
from shadowlab.settings import AugmentConfig, load_config, preset_names, values
from shadowlab.stages.train import setup
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.light import embed_light
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training.step import StepPlace, sample_times
from shadowlab.views.tensorboard.rebuild import rebuild_board
from tests.old_runs import make

RECORDED = json.loads(make.RECORDED.read_text())
EXPECTED = load_file(make.EXPECTED)
MOVED = {"overfit.min_soft_iou": "task_options.min_soft_iou", "validation.light_sweep": "task_options.light_sweep"}
YOUNG = {
    "task",
    "checkpoint.keep_best",
    "optimizer.name",
    "tracking",
    "train.noise_share",
    "train.trainable",
    "task_options.view",
    *(f"data.augment.{name}" for name in AugmentConfig.model_fields),
}  # keys that the earlier version did not have

YOUNG_RECORDS = {
    "ema_distance",
    "ema_moved",
    "frozen_moved",
    "gradient_carried",
    "input_max",
    "input_std",
    "num_updates",
    "schedule",
    "split",
}  # keys of records that it did not write
YOUNG_FINDINGS = {"subject"}

# After three steps of 1e-3 with AVX512, AVX2 and SSE4 the weights were 6e-8 apart.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ON_SAME_MACHINE = make.machine() == RECORDED["machine"]
SAME_TORCH = torch.__version__.partition("+")[0] == RECORDED["machine"]["torch"].partition("+")[0]


def shadowlab(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done


def document(*words: str) -> dict[str, Any]:
    return json.loads(shadowlab(*words).stdout)


def copy_of(place: Path) -> Path:
    """The old folder as it was left: pictures as old as its latents say, and the folders that git does not keep."""
    folder = Path(shutil.copytree(make.FOLDER, place / "folder"))
    for name, picture in LatentIndex.read(folder / "latents", "").files.items():
        os.utime(folder / "data" / name, ns=(picture.mtime_ns, picture.mtime_ns))
    for run in (folder / "runs").iterdir():
        for name in SUBFOLDERS:
            (run / name).mkdir(exist_ok=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_of(tmp_path))
    return Path()


@dataclass(frozen=True)
class Resumed:
    """The old run, gone on with."""

    run: Path
    output: str
    drawn: list[str]

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / "step-00000006"

    @property
    def tensors(self) -> dict[str, Tensor]:
        return make.checkpoint_tensors(self.checkpoint)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resumed]:
    folder = copy_of(tmp_path_factory.mktemp("old"))
    without_a_stand_in = mock.patch.object(setup, "prove_checkpoints")  # which draws noise of its own
    with contextlib.chdir(folder), make.drawn() as texts, without_a_stand_in:
        output = shadowlab(*make.RESUME).output
        yield Resumed(folder / "runs" / "fallen", output, list(texts))


def numbers_in(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Place and value of each number in a record."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from numbers_in(value[key], f"{where}/{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from numbers_in(item, f"{where}/{number}")
    elif isinstance(value, int | float):
        yield where, value


def shape_of(value: Any) -> Any:
    """A record with its keys and texts, without numbers."""
    if isinstance(value, dict):
        return [(key, shape_of(value[key])) for key in sorted(value)]
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


def assert_same_records(records: list[dict[str, Any]], name: str) -> None:
    """As the earlier version wrote them, in its order, up to rounding, and no other keys but the young ones."""
    records = [{key: value for key, value in one.items() if key not in YOUNG_RECORDS} for one in records]
    wanted = list(read_records(make.RECORDS[name]))
    assert [shape_of(record) for record in records] == [shape_of(record) for record in wanted]
    numbers = [list(numbers_in({str(n): record for n, record in enumerate(one)})) for one in (records, wanted)]
    off = [
        f"record {place}: {value}, was {was}"
        for (place, value), (_, was) in zip(*numbers, strict=True)
        if not place.endswith("/fraction_zero") and not math.isclose(value, was, rel_tol=1e-3, abs_tol=1e-4)
    ]  # a sum that cancels is exactly zero in one order of adding and not in another
    assert off == []


# --- a run goes on ---------------------------------------------------------------------------------------------------


def test_an_old_run_is_resumed_after_its_incident(resumed: Resumed) -> None:
    assert "steps 3 to 6" in resumed.output
    stages = json.loads((resumed.run / "stages.json").read_text())
    assert stages["train"]["passed"] and stages["train"]["summary"]["steps"] == 6
    assert (resumed.run / "incidents" / "step-00000005" / "verdict.json").is_file()
    assert load_config(file=resumed.run / "config.yaml").model_hash() == stages["train"]["model_hash"]


def test_it_writes_what_the_old_code_wrote(resumed: Resumed) -> None:
    assert_same_records(make.records_of(resumed.run / "metrics.jsonl", after=3), "resumed")
    files = [file for file in resumed.checkpoint.rglob("*") if file.is_file()]
    assert sorted(str(file.relative_to(resumed.checkpoint)) for file in files) == RECORDED["resumed"]["files"]
    assert list(resumed.tensors) == list(RECORDED["resumed"]["tensors"])
    assert json.loads((resumed.checkpoint / "state.json").read_text()) == RECORDED["resumed"]["state"]


def test_it_draws_what_the_old_code_drew(resumed: Resumed) -> None:
    """In whatever order: each is a function of its own name alone."""
    assert sorted(resumed.drawn) == sorted(RECORDED["resumed"]["drawn"])


def test_weights_averages_and_moments_are_the_old_ones(resumed: Resumed) -> None:
    wanted = {name.removeprefix("resumed/"): t for name, t in EXPECTED.items() if name.startswith("resumed/")}
    parts = {name.partition("/")[0] for name in wanted}
    assert parts == {"unet", "ema", "optimizer"} and len(wanted) > 40
    tensors = resumed.tensors
    for name, tensor in wanted.items():
        torch.testing.assert_close(tensors[name], tensor, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.skipif(not ON_SAME_MACHINE, reason=f"the last bits are those of {RECORDED['machine']}")
def test_they_are_equal_bit_for_bit(resumed: Resumed) -> None:
    found = {name: digest(tensor)[:16] for name, tensor in resumed.tensors.items()}
    assert [name for name, was in RECORDED["resumed"]["tensors"].items() if found[name] != was] == []
    found_records = make.records_of(resumed.run / "metrics.jsonl", after=3)
    kept = [{key: value for key, value in one.items() if key not in YOUNG_RECORDS} for one in found_records]
    assert kept == list(read_records(make.RECORDS["resumed"]))


def test_old_proofs_and_old_latents_are_good(folder: Path) -> None:
    """check-forward and overfit of the earlier version are proof enough, with its key on the command line."""
    output = shadowlab(*make.CACHED).output
    assert "check-forward: passed before (runs/checked)" in output
    assert "overfit: passed before (runs/proven)" in output
    assert "no VAE in the step" in output and "modification time" not in output
    records = make.records_of(folder / "runs" / "cached" / "metrics.jsonl")
    for new in ("charts", "metrics", "started", "command"):
        assert new in records[0]
        del records[0][new]
    assert_same_records(records, "cached")


def test_latents_have_their_old_names_and_values(folder: Path) -> None:
    shadowlab("data", "encode", "--data", "data", "--out", "again", "--set", "data.image_size=32")
    old, new = (
        {str(file.relative_to(place)): load_file(file) for file in sorted((folder / place).rglob("*.safetensors"))}
        for place in ("latents", "again")
    )
    assert old and old.keys() == new.keys()
    for name, parts in old.items():
        torch.testing.assert_close(new[name], parts, rtol=1e-4, atol=1e-4)
    assert (folder / "latents" / "index.json").read_text() == (folder / "again" / "index.json").read_text()


# --- an incident, and what shows a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", make.WHY)
def test_an_old_incident_is_explained_as_before(folder: Path, run: str) -> None:
    assert make.plain_why(document(*make.WHY[run])) == RECORDED["why"][run]


@pytest.mark.parametrize("command", make.SHOWN)
def test_old_records_are_read_as_before(folder: Path, command: str) -> None:
    words, code = make.SHOWN[command]
    done = shadowlab(command, "runs/fallen", "--json", *words, code=code)
    found, was = json.loads(done.stdout), RECORDED["shown"][command]
    if command == "health":  # rules that came later find nothing in it
        assert set(was["rules"]) <= set(found["rules"])
        found["rules"] = was["rules"]
        for finding in found["findings"]:
            assert {finding.pop(key) for key in YOUNG_FINDINGS} == {None}
    assert found == was


def test_old_runs_are_listed_and_reported(folder: Path) -> None:
    rows = {line.split()[0] for line in shadowlab("runs").output.splitlines() if line.strip()}
    assert {"checked", "proven", "fallen", "half"} <= rows
    page = Path(shadowlab("report", "runs/fallen").output.strip().splitlines()[-1]).read_text()
    assert "native_group_norm" in page and "mid_block.resnets.0.norm2" in page


def test_tensorboard_is_rebuilt_from_old_records(folder: Path) -> None:
    rebuilt = rebuild_board(folder / "runs" / "fallen")
    events = EventAccumulator(str(rebuilt.folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert "histogram" in str(events.Tags())


# --- configurations --------------------------------------------------------------------------------------------------


def test_an_old_configuration_says_what_it_said(folder: Path) -> None:
    """Keys that moved are read under their old names, from files and from --set."""
    for file in sorted((folder / "runs").rglob("config.yaml")):
        old = yaml.safe_load(file.read_text())
        config = values(load_config(file=file))
        assert "min_soft_iou" in old["overfit"] and "light_sweep" in old["validation"]
        assert_kept(old, config)
    assert load_config(assignments=["overfit.min_soft_iou=0.5"]).task_options["min_soft_iou"] == 0.5


@pytest.mark.parametrize("name", RECORDED["presets"])
def test_a_preset_says_what_it_said(name: str) -> None:
    assert_kept(RECORDED["presets"][name], values(load_config(preset=name, options={"allow_unsafe": True})))


def assert_kept(old: dict[str, Any], config: dict[str, Any]) -> None:
    """Every key of an earlier version, under its name of today, and no other but the young ones."""
    sections = {name: keys for name, keys in old.items() if isinstance(keys, dict)}
    was = {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}
    was |= {name: value for name, value in old.items() if name not in sections}
    kept = {MOVED.get(name, name): value for name, value in was.items()}
    options = ShadowTask.options()().model_dump()
    given = config | {
        f"task_options.{name}": config.get(f"task_options.{name}", value) for name, value in options.items()
    }
    assert [name for name, value in kept.items() if given[name] != value] == []
    assert set(given) - set(kept) - {"task_options"} == YOUNG  # a section that is empty counts as a key


def test_no_preset_was_lost() -> None:
    assert set(RECORDED["presets"]) <= set(preset_names())


@pytest.mark.parametrize("name", make.HASHED)
def test_a_model_hash_is_the_old_one(folder: Path, name: str) -> None:
    assert load_config(**make.HASHED[name]).model_hash() == RECORDED["model hashes"][name]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_new_model_begins_with_the_old_weights() -> None:
    weights = load_unet("random", "tiny", ShadowTask.spec, seed=0).state_dict()
    assert list(make.shapes_of(weights).items()) == list(RECORDED["initial weights"]["shapes"].items())
    torch.testing.assert_close(make.summary_of(weights), EXPECTED["weights"], rtol=1e-5, atol=1e-7)
    if ON_SAME_MACHINE:
        assert make.digest_of(weights) == RECORDED["initial weights"]["digest"]


def test_samples_come_in_the_old_order() -> None:
    dataset = open_dataset("embedded", 128)
    assert dataset.fingerprint() == RECORDED["fingerprint"]
    split = split_by_object(dataset.object_ids, load_config().data.validation_fraction, 0)
    assert [list(split.train), list(split.validation)] == RECORDED["split"]
    assert sample_indices(0, 500, len(split.train), 0) == RECORDED["order"]


def test_noise_and_times_are_drawn_as_before() -> None:
    assert [derive_seed(0, "noise", position) for position in range(8)] == RECORDED["seeds"]
    noise = torch.stack([normal((4, 4, 4), 0, "noise", position) for position in range(8)])
    torch.testing.assert_close(noise, EXPECTED["noise"], rtol=1e-5, atol=1e-5)
    places = [StepPlace(step, 8 * step, 8) for step in range(3)]
    times = [sample_times(0, torch.arange(p.first_position, p.first_position + 8), p).tolist() for p in places]
    assert times == RECORDED["times"]


def test_pictures_are_decoded_as_before() -> None:
    found = make.pictures_of(open_dataset("embedded", make.SIZE))
    assert {name: digest(tensor) for name, tensor in found.items()} == RECORDED["pictures"]
    for name, tensor in make.pictures_of(open_dataset("embedded", make.REDUCED)).items():
        torch.testing.assert_close(tensor, EXPECTED[f"reduced/{name}"], rtol=1e-5, atol=1e-6)


def test_the_light_is_embedded_as_before() -> None:
    torch.testing.assert_close(embed_light(torch.tensor(make.LIGHTS)), EXPECTED["light"], rtol=1e-5, atol=1e-6)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "name"), [([], "check-forward"), (make.OWN, "check-forward of one's own")])
def test_check_forward_asks_and_sees_what_it_did(folder: Path, words: list[str], name: str) -> None:
    found, was = make.checks_of(document(*make.CHECK, *words, "--run", "again")), dict(RECORDED[name])
    answers, old = (re.findall(r"[\d.]+(?:e-\d+)?", " ".join(one.pop("answers"))) for one in (found, was))
    names = [check for check, _ in was["checks"]]
    assert all(passed for _, passed in found["checks"])
    found["checks"] = [one for one in found["checks"] if one[0] in names]  # others came later
    assert found == was
    assert [float(number) for number in answers] == pytest.approx([float(number) for number in old], rel=5e-3)


def test_a_plan_says_what_it_said(folder: Path) -> None:
    """A few tensors of a sample's size are made in another order, and another torch may take more in an operator."""
    found, was = make.planned(load_config(file="runs/fallen/config.yaml")), RECORDED["plan"]
    assert sorted(found["text"]) == sorted(was["text"])  # activations come first now
    assert found["figures"].pop("trained") == was["figures"]["parameters"]
    assert shape_of(found["figures"]) == shape_of(was["figures"])
    if SAME_TORCH:
        for (place, value), (_, old) in zip(numbers_in(found["figures"]), numbers_in(was["figures"]), strict=True):
            assert math.isclose(value, old, rel_tol=0.02), place


def test_the_seeds_verdict_is_the_old_one(seed_fp16: tuple[str, Path]) -> None:
    [verdict] = (seed_fp16[1] / "runs").rglob("verdict.txt")
    assert make.bare_verdict(verdict.read_text()) == RECORDED["seed-fp16"]
