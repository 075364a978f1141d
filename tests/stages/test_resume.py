"""What may change on --resume and what would make it another run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shadowlab.errors import UserError
from shadowlab.runs.folder import RunFolder, default_name
from shadowlab.runs.lookup import latest_training_run
from shadowlab.runs.resume import changes, resumed_config
from shadowlab.settings.files import load_config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load_config(assignments=[f"output_dir={tmp_path}", "train.max_steps=9"]), "run", "tiny")


def resumed(run: RunFolder, *assignments: str, source: str | None = None) -> object:
    return resumed_config(run, source=source, options={}, assignments=assignments)


def test_without_words_it_is_what_it_was(run: RunFolder) -> None:
    assert resumed(run) == run.saved_config()


@pytest.mark.parametrize(
    "assignment",
    [
        "train.max_steps=20",
        "train.log_every=1",
        "checkpoint.every_steps=1",
        "device=cpu",
        "data.num_workers=2",
        "diagnostics.statistics_every=0",
    ],
)
def test_what_does_not_touch_the_weights_may_change(run: RunFolder, assignment: str) -> None:
    assert resumed(run, assignment) == load_config(file=run.path / "config.yaml", assignments=[assignment])


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("seed=1", "seed"),
        ("precision=bf16", "precision"),
        ("model.weights=./other", "model.weights"),
        ("data.path=./other", "data.path"),
        ("data.image_size=64", "data.image_size"),
        ("data.validation_fraction=0.5", "data.validation_fraction"),
        ("optimizer.beta2=0.9", "optimizer.beta2"),
        ("optimizer.weight_decay=0.2", "optimizer.weight_decay"),
        ("train.ema_decay=null", "train.ema_decay"),
    ],
)
def test_what_makes_it_another_run_is_refused(run: RunFolder, assignment: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"--resume: {key} was .* and is .* now.*start anew with another --run"):
        resumed(run, assignment)


@pytest.mark.parametrize(
    "assignment", ["optimizer.learning_rate=1e-6", "optimizer.schedule=cosine", "optimizer.warmup_steps=3"]
)
def test_the_learning_rate_may_change(run: RunFolder, assignment: str) -> None:
    assert resumed(run, assignment) == load_config(file=run.path / "config.yaml", assignments=[assignment])


def test_the_end_of_a_cosine_may_move(tmp_path: Path) -> None:
    words = [f"output_dir={tmp_path}", "optimizer.schedule=cosine", "train.max_steps=9"]
    run = RunFolder.create(load_config(assignments=words), "cosine")
    assert resumed(run, "train.max_steps=20") == load_config(assignments=[*words, "train.max_steps=20"])


def test_other_processes_share_the_same_samples(tmp_path: Path) -> None:
    words = [f"output_dir={tmp_path}", "train.batch_size=2", "distributed.processes=4"]
    run = RunFolder.create(load_config(assignments=words), "four")

    def accumulation(processes: int, *assignments: str, launched: int | None = None) -> int:
        words = [*assignments, f"distributed.processes={processes}"]
        config = resumed_config(run, source=None, options={}, assignments=words, num_processes=launched)
        assert config.distributed.processes == (launched or processes)
        return config.train.gradient_accumulation_steps

    assert [accumulation(n) for n in (4, 2, 1)] == [1, 2, 4]
    assert accumulation(4, launched=2) == 2  # what torchrun started holds
    assert accumulation(2, "train.batch_size=4") == 1
    assert accumulation(2, "train.gradient_accumulation_steps=3") == 3  # asked for; the checkpoint will refuse
    with pytest.raises(UserError, match=r"batch of 8 cannot be shared by 3 processes with train\.batch_size=2"):
        accumulation(3)


def test_only_its_own_source_may_be_named(run: RunFolder) -> None:
    assert resumed(run, source="tiny") == run.saved_config()
    with pytest.raises(UserError, match=r"--resume: .* began with tiny, not sdxl; leave --preset and --config out"):
        resumed(run, source="sdxl")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration of the user's own, from which a run was started."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: [tiny]\noutput_dir: {tmp_path}\nseed: 3\ntrain: {{max_steps: 9}}\n")
    RunFolder.create(load_config(file=file), "own", "mine")
    return file


def from_file(file: Path, *assignments: str) -> object:
    run = RunFolder(file.parent / "own")
    return resumed_config(run, source="mine", options={}, assignments=assignments, file=file)


def test_an_edited_file_counts_like_options(file: Path) -> None:
    """Ignored, the run would go on with numbers that nobody asked for."""
    run = RunFolder(file.parent / "own")
    assert from_file(file) == run.saved_config()
    file.write_text(file.read_text().replace("max_steps: 9", "max_steps: 20, log_every: 1"))
    given = from_file(file)
    assert given == load_config(file=file)
    assert changes(run.saved_config(), load_config(file=file)) == ["train.max_steps 9 -> 20", "train.log_every 10 -> 1"]
    assert from_file(file, "train.max_steps=30") == load_config(file=file, assignments=["train.max_steps=30"])


def test_an_edited_file_that_makes_it_another_run_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(UserError, match=rf"--resume: seed was 3 in .* and is 4 now.*take it back in {file}"):
        from_file(file)


def test_a_preset_by_the_name_of_config_is_no_file(run: RunFolder) -> None:
    """`--config tiny` was the run's beginning; options of that time stay."""
    assert resumed_config(run, source="tiny", options={}, assignments=[], file="tiny") == run.saved_config()


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"source": 5}'])
def test_a_lost_environment_is_named_where_it_is_needed(run: RunFolder, content: str | None) -> None:
    file = run.path / "environment.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert resumed(run) == run.saved_config()
    with pytest.raises(UserError, match=r"environment\.json: .*; leave --preset and --config out") as caught:
        resumed(run, source="tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [RunFolder.create, RunFolder.reopen])
def test_a_name_too_long_for_a_folder(tmp_path: Path, make: Callable[..., RunFolder]) -> None:
    config = load_config(assignments=[f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"--run xxx.*: 300 characters, at most 150") as caught:
        make(config, "x" * 300)
    assert len(str(caught.value)) < 200
    assert make == RunFolder.reopen or make(config, "x" * 150).path.is_dir()
    assert RunFolder.create(config, default_name("y" * 240, "train")).path.is_dir()


def test_the_newest_run_with_a_checkpoint_is_found(tmp_path: Path) -> None:
    config = load_config(assignments=[f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"no run of preset tiny with a checkpoint.*--run"):
        latest_training_run(config, "tiny")
    for name in ("tiny-train-1", "tiny-train-2", "sdxl-train-3"):
        folder = RunFolder.create(config, name).checkpoints / "step-00000001"
        folder.mkdir()
        (folder / "COMPLETE").write_text("{}")
    RunFolder.create(config, "tiny-train-4")  # without a checkpoint
    assert latest_training_run(config, "tiny") == "tiny-train-2"


@pytest.mark.parametrize("label", ["tiny", "my config", "[1]", "ä", "-x", ".hidden"])
def test_any_file_name_makes_a_run_name(tmp_path: Path, label: str) -> None:
    """The default name comes from the configuration's file name, which may be anything."""
    config = load_config(assignments=[f"output_dir={tmp_path}"])
    name = default_name(label, "train")
    folder = RunFolder.create(config, name).checkpoints / "step-00000001"
    folder.mkdir()
    (folder / "COMPLETE").write_text("{}")
    assert latest_training_run(config, label) == name


def test_one_process_at_a_time_trains_a_run(run: RunFolder) -> None:
    with run.claim(), pytest.raises(UserError, match=r"run: another process works on this run; wait for it"):
        run.claim()
    run.claim().close()
