"""Every command that README, CONTRIBUTING and docs/ show is run here as typed, or by what is named here.

What takes minutes is shortened; `SHADOWLAB_DOCS=whole` runs it in full. What a page says a command prints is compared
line by line, but for numbers, which are another machine's.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import diagnostics
from cli.main import app
from shadowlab.bench.corpus import FAULTS
from shadowlab.settings import load_config
from tests import pages
from tests.pages import PAGES, ROOT, Command
from tests.tasks.shadow.sound import make_folder, sound_pictures

WHOLE = os.environ.get("SHADOWLAB_DOCS") == "whole"
README = ROOT / "README.md"
DOCS = ROOT / "docs"

ONE = "--set validation.num_noises=1 --set validation.timesteps=[0.5]"
EASY = f"{ONE} --set overfit.min_r2=-1e9 --set overfit.min_soft_iou=0"
FEW = f"{EASY} --set validation.num_samples=2 --set validation.light_sweep=false --set train.batch_size=2"

# Appended: fewer steps and no criterion, nothing that changes what the command means.
SHORTER = {
    "shadowlab overfit --samples 16": f"--max-steps 2 {EASY}",
    "shadowlab train --precision fp32 --max-steps 200": f"--max-steps 2 {FEW}",
    "shadowlab train --precision fp32 --max-steps 400 --resume": f"--max-steps 3 {FEW}",
    "shadowlab why latest": "--only again",
    "shadowlab train --data DIR": f"--max-steps 1 {FEW}",
    "shadowlab train --run demo --max-steps 40 --set diagnostics.statistics_every=5": f"--max-steps 2 {FEW}",
    "shadowlab train --max-steps 40 --set data.latents=latents": f"--max-steps 2 --set train.log_every=1 {FEW}",
    "shadowlab data render --meshes MESHES --out my-renders --lights 4": "--size 32 --spp 1",
    "shadowlab overfit --samples 16 --data my-renders": f"--max-steps 1 {EASY}",
    "shadowlab evaluate small --data embedded": "--steps 1 --seeds 1 --control 0 --no-baselines",
}

# Each case is a test of tests/bench/test_corpus.py and of test_corpus_watched.py: here, some of every kind.
SHORTER["shadowlab bench faults"] = " ".join(f"--only {fault.name}" for fault in FAULTS[::8])

# Run in place of one that takes minutes: what it prints has the same lines.
INSTEAD = {
    "shadowlab plan --preset sdxl-4xh100": "shadowlab plan --processes 4 --checkpointing "
    "--weights stabilityai/stable-diffusion-xl-base-1.0",
}

# By what a command is run that needs many minutes, several devices, the network, or a person who ends it.
ELSEWHERE = {
    "Makefile": [
        "make quickstart",
        "python3 -m venv .venv",
        "source .venv/bin/activate",
        "pip install -c constraints.txt -e .",
        'pip install -c constraints.txt -e ".[render]"',
        'pip install -c constraints.txt -e ".[export]"',
        'pip install -c constraints.txt -e ".[demo]"',
        'pip install -c constraints.txt -e ".[low-memory]"',
        'pip install -c constraints.txt -e ".[wandb,mlflow]"',
    ],
    ".ci/run": [
        "git clone URL shadowlab && cd shadowlab",
        "make test",
        "make check test",
        "python scripts/soak.py --kills 40",
    ],
    "scripts/gpu_check.py": ["shadowlab check-forward --preset sdxl --weights random"],
    "tests/bench/test_corpus.py::test_the_command_counts_the_same": ["shadowlab bench faults --peers"],
    "tests/bench/test_silent.py::test_the_command_prints_the_table_and_one_document": [
        "shadowlab bench silent",
        "shadowlab bench silent --peers",
    ],
    "tests/bench/test_overhead.py::test_a_miniature_gives_every_row": ["shadowlab bench overhead"],
    "tests/bench/test_hosts.py::test_a_host_is_right_in_every_phase": ["shadowlab bench hosts"],
    "tests/bench/test_step.py::test_a_miniature_gives_every_row": [
        "OMP_NUM_THREADS=1 shadowlab bench step --rounds 10 --option channels_last",
        "shadowlab bench step --rounds 9",
    ],
    "tests/bench/test_views.py::test_a_row_counts_bytes_and_dumps": ["shadowlab bench views"],
    "tests/bench/test_views.py::test_a_long_run_has_every_kind_of_record_and_each_command_is_measured": [
        "shadowlab bench views --long-run 150000",
    ],
    "tests/training/test_eight_bit.py::test_the_command_trains_and_goes_on": [
        "shadowlab train --set optimizer.name=adamw8bit",
    ],
    "tests/demo/test_demo_in_browser.py::test_half_a_turn_of_the_light_moves_the_shadow_to_the_other_side": [
        "shadowlab demo small",
    ],
    "tests/distributed/test_processes.py::test_four_sharded_processes_then_two_then_one": [
        "shadowlab train --processes 4",
        "torchrun --nproc-per-node 4 --no-python -- shadowlab train",
    ],
    "tests/evaluation/test_evaluate.py::test_killed_and_resumed_by_several_the_files_are_the_same": [
        "shadowlab evaluate latest --data benchmark.tar --processes 4 --out judged",
    ],
    "tests/evaluation/test_evaluate.py::test_the_command_prints_tables_and_one_document": [
        "shadowlab evaluate latest --data my-renders",
    ],
    "tests/evaluation/test_evaluate.py::test_the_truth_is_perfect_and_black_is_nothing_on_every_track": [
        "shadowlab evaluate truth --data embedded",
    ],
    "tests/evaluation/test_comparison.py::test_checkpoints_are_judged_and_finished_evaluations_are_taken": [
        "shadowlab evaluate --compare RUN OTHER --data my-renders",
    ],
    "tests/examination/test_check_data.py::test_any_number_of_processes_finds_the_same": [
        "shadowlab data check DIR --processes 8",
    ],
    "tests/tasks/shadow/test_view.py::test_command_writes_the_file_and_says_what_it_is": [
        "shadowlab fit-baselines --data my-renders --out view.json",
        "shadowlab data render --out my-renders --objects 40 --lights 3 --size 128 --spp 64 --seed 1313",
        "shadowlab fit-baselines --data my-renders --out shadowlab/assets/view.json",
    ],
    "tests/distributed/test_processes.py::test_more_processes_than_gpus": [
        "shadowlab train --preset sdxl-4xh100 --data DIR",
    ],
    "tests/inference/test_small.py::test_a_run_becomes_a_model_that_ships": [
        "shadowlab data render --objects 900 --lights 4 --size 128 --spp 32 --seed 13 --processes 2 "
        "--out runs/small-renders",
        "shadowlab data encode --preset small --data runs/small-renders --out runs/small-latents --processes 2",
        "shadowlab train --preset small --precision bf16 --data runs/small-renders "
        "--set data.latents=runs/small-latents --run small --skip-stages",
        "python -m scripts.ship_model runs/small shadowlab/assets/models/small --data runs/small-renders",
        "export MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456",
    ],
    "tests/stages/test_check_precision.py::test_half_weights_alone_do_not_hold": [
        "shadowlab check-precision",
        "shadowlab check-precision --preset sdxl --weights random",
    ],
    "tests/distributed/test_shared_work.py::test_a_killed_process_is_named_and_the_same_command_goes_on": [
        "shadowlab data encode --data my-renders --out latents --processes 2",
        "shadowlab data render --objects 1000 --out my-renders --processes 8",
    ],
    "tests/distributed/test_shared_work.py::test_three_processes_pack_and_one_error_of_theirs_is_one_line": [
        "shadowlab data pack my-renders --out my-pack --processes 4",
        "shadowlab train --data my-pack",
    ],
    "tests/doctor/test_doctor.py::test_where_all_is_well_it_says_so_and_leaves_nothing_behind": ["shadowlab doctor"],
    "tests/exporting/test_export.py::test_the_command_runs_what_it_wrote_without_shadowlab": [
        "shadowlab export latest --to diffusers --out my-pipeline",
    ],
    "tests/exporting/test_programs.py::test_torch_programs_give_what_the_model_gives": [
        "shadowlab export latest --to torch --out my-programs",
    ],
    "tests/exporting/test_programs.py::test_onnx_programs_give_what_the_model_gives": [
        "shadowlab export latest --to onnx --out my-onnx",
    ],
    "tests/tasks/albedo/test_commands.py::test_the_stages_and_a_picture_of_ones_own": [
        "shadowlab check-forward --preset albedo-tiny --data my-pairs/",
        "shadowlab overfit --preset albedo-tiny --data my-pairs/ --samples 16",
        "shadowlab train --preset albedo-tiny --data my-pairs/",
        "shadowlab train --preset albedo-tiny --data lists/train.txt --set task_options.beauty_space=srgb "
        "   --set task_options.albedo_space=srgb",
        "shadowlab plan --preset albedo-sd21",
        "shadowlab data encode --preset albedo-tiny --set data.augment.flip=0.5 --set data.augment.quarter_turn=0.75 "
        "   --set data.augment.channel_order=0.83 --out latents",
        "shadowlab train --preset albedo-tiny --run albedo --max-steps 2400 --set train.noise_share=0.8 "
        "   --set optimizer.schedule=cosine --set optimizer.learning_rate=2e-3 --set data.latents=latents "
        "   --set data.augment.flip=0.5 --set data.augment.quarter_turn=0.75 --set data.augment.channel_order=0.83",
        "shadowlab evaluate albedo --steps 1,4 --seeds 8",
        "shadowlab data check my-pairs --preset albedo-tiny",
    ],
    "tests/tasks/albedo/test_render.py::test_the_folder_says_what_it_holds": [
        "shadowlab data render --task albedo --objects 200 --lights 2 --spp 64 --out my-pairs",
    ],
    "tests/tasks/editing/test_commands.py::test_the_stages_and_a_picture_of_ones_own": [
        "shadowlab check-forward --preset white-balance-tiny",
        "shadowlab overfit --preset object-removal-tiny --samples 8",
        "shadowlab train --preset paint-to-image-tiny",
        "shadowlab train --preset object-removal-tiny --data my-edits/object-removal.csv",
        "shadowlab train --preset object-removal-tiny --run removal --set overfit.num_samples=8",
        "shadowlab evaluate removal --steps 1,4 --seeds 2",
        "shadowlab train --preset white-balance-tiny --run balance --set overfit.num_samples=8",
        "shadowlab evaluate balance --steps 1,4 --seeds 2",
        "shadowlab train --preset white-balance-tiny --run casts --max-steps 600 --set overfit.num_samples=8 "
        "   --set train.noise_share=0.8 --set optimizer.schedule=cosine --set optimizer.learning_rate=2e-3 "
        "   --set data.augment.flip=0.5 --set data.augment.cast=0.75",
        "shadowlab evaluate casts --steps 1 --seeds 1",
        "shadowlab generate latest --image photo.jpg --out balanced.png",
        "shadowlab generate runs/removal --image street.jpg --mask mask.png --out empty-street.png",
        "shadowlab export removal --to diffusers --out removal-pipeline",
    ],
    "tests/demo/test_task_pages.py::test_the_page_in_a_browser": ["shadowlab demo removal"],
    "tests/inference/test_starting.py::test_the_commands_say_it_and_a_resume_does_not_ask_for_it": [
        "shadowlab train --preset paint-to-image-tiny --weights balance --run painting",
    ],
    "tests/tasks/editing/test_render.py::test_the_same_arguments_give_the_same_bytes": [
        "shadowlab data render --task editing --objects 40 --lights 2 --size 64 --spp 16 --textures photographs "
        "--out my-edits",
    ],
    "tests/tasks/insertion/test_commands.py::"
    "test_the_stages_train_self_attention_alone_and_a_picture_of_ones_own_is_composited": [
        "shadowlab check-forward --preset insertion-tiny",
        "shadowlab overfit --preset insertion-tiny --samples 8",
        "shadowlab train --preset insertion-tiny --run insertion",
        "shadowlab evaluate insertion --steps 1,4",
        "shadowlab generate insertion --target room.png --object chair.png --mask where.png --out room-with-chair.png",
        "shadowlab export insertion --to diffusers --out insertion-pipeline",
        "shadowlab demo insertion",
        "shadowlab overfit --preset insertion-tiny --samples 8 --max-steps 1200 --set overfit.min_r2=0.95 "
        "--set task_options.max_rmse=0.1 --set overfit.evaluate_every=100",
        "shadowlab train --preset insertion-tiny --skip-stages --max-steps 200 --run adamw",
        "shadowlab train --preset insertion-tiny --skip-stages --max-steps 200 --set optimizer.name=adamw8bit "
        "--run adamw8bit",
    ],
    "tests/test_drill.py::test_the_verdict_names_the_injected_place": ["shadowlab drill drift"],
    "tests/test_examples.py::test_a_transformers_loop_under_watch": ["python examples/watch_transformers.py"],
    "tests/test_planning.py::test_the_plan_is_within_a_tenth_of_the_measured_peak": ["shadowlab bench memory"],
    "tests/test_planning.py::test_insertion_fits_8_gb_item_by_item": [
        "shadowlab plan --preset insertion-8gb --gpu-memory 8 --strategy single",
    ],
    "tests/test_planning.py::test_insertion_8gb_on_a_small_model_is_planned_as_it_is_measured": [
        "shadowlab plan --preset insertion-8gb --device cpu --strategy single --measure      "
        "--set model.architecture=tiny-inpainting --set model.weights=embedded-inpainting "
        "--set model.vae=random-tiny      --set data.path=embedded --set data.image_size=256 "
        "--set train.gradient_accumulation_steps=2",
    ],
    "tests/views/trackers/test_trackers.py::test_a_run_whose_histograms_hold_nan_goes_on": [
        "shadowlab train --set tracking=[tensorboard,wandb]",
        "shadowlab track RUN --to wandb",
    ],
    "tests/views/tensorboard/test_tensorboard.py::test_charts_pictures_and_words_are_served": [
        "shadowlab tensorboard latest",
        "shadowlab tensorboard runs/mine --rebuild",
    ],
}
WEDGE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
RUN_ELSEWHERE = {words for commands in ELSEWHERE.values() for words in commands}

FIRST_RUN = "shadowlab train --config seed-fp16 --allow-unsafe"  # the fixture `seed_fp16`, which other tests have, too
AFTER_THE_FIRST_RUN = {"docs/origin.md"}  # pages whose `latest` is that run, and not the README's training


def stages_of_the_readme() -> list[Command]:
    """The first commands of its own that it shows: three stages, and the last of them resumed."""
    return [command for command in pages.commands(README) if command.words.startswith("shadowlab ")][:4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, in which the README's stages have run."""
    folder = tmp_path_factory.mktemp("user")
    make_folder(folder / "DIR", 8)
    (folder / "MESHES").mkdir()
    for number in range(4):
        (folder / "MESHES" / f"wedge{number}.obj").write_text(WEDGE)
    pictures = sound_pictures(0)
    (folder / "photo.jpg").write_bytes(pictures["object"])
    (folder / "mask.png").write_bytes(pictures["mask"])
    make_own_pictures(folder)
    make_own_loop(folder / "runs" / "mine")
    for command in stages_of_the_readme():
        prove(command, folder)
    return folder


def make_own_loop(run: Path) -> None:
    """Records of a loop that is the user's own."""
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = diagnostics.Watch(model, optimizer, records=run, incidents=run / "incidents", statistics_every=2)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()

    for _ in range(4):
        watch.step(step)


def make_own_pictures(folder: Path) -> None:
    """What the pages about a model's use name: an object with alpha, a background of its size, a list."""
    with Image.open(folder / "photo.jpg") as photo, Image.open(folder / "mask.png") as mask:
        cup = photo.convert("RGB")
        cup.save(folder / "table.jpg")
        cup.putalpha(mask.convert("L"))
        cup.save(folder / "cup.png")
    (folder / "pictures.csv").write_text("object,mask,seed,out\ncup.png,,1,one.png\nphoto.jpg,mask.png,2,two.png\n")


@pytest.fixture(scope="module")
def broken(seed_fp16: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, in which the run that went NaN lies."""
    return shutil.copytree(seed_fp16[1], tmp_path_factory.mktemp("broken") / "user")


@pytest.mark.parametrize("page", [page for page in PAGES if pages.commands(page)], ids=lambda page: page.name)
def test_commands_run_and_print_what_the_page_says(page: Path, request: pytest.FixtureRequest) -> None:
    world = "broken" if str(page.relative_to(ROOT)) in AFTER_THE_FIRST_RUN else "trained"
    for command in pages.commands(page):
        if command.words in RUN_ELSEWHERE:
            continue
        if command.words == FIRST_RUN:
            printed = request.getfixturevalue("seed_fp16")[0]
        else:
            printed = prove(command, request.getfixturevalue(world))
        absent = pages.missing(command.output or "", printed)
        assert not absent, f"{command.place}: `{command.words}` printed\n{printed}\nand not\n" + "\n".join(absent)


def test_train_takes_up_what_the_stages_proved_and_goes_on_where_it_stopped(trained: Path) -> None:
    printed = prove(stages_of_the_readme()[3], trained)
    assert "check-forward: passed before" in printed
    assert "overfit: passed before" in printed
    run = min(trained.glob("runs/tiny-train-*"))
    if not WHOLE:
        assert [path.name for path in sorted(run.glob("checkpoints/step-*"))] == ["step-00000002", "step-00000003"]


def prove(command: Command, folder: Path) -> str:
    """Run it in `folder`, unless it ran there already; what it printed."""
    return _proven(command.words, folder)


@cache
def _proven(words: str, folder: Path) -> str:
    asked = words if WHOLE else f"{INSTEAD.get(words, words)} {SHORTER.get(words, '')}"
    program, *arguments = pages.words_of(asked)
    assert program == "shadowlab", f"`{words}`: nothing runs it; name what does in ELSEWHERE"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"`{asked}`\n{result.output}"
    return result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block without a kind would be neither run nor compared."""
    kinds = {"sh", "console", "python", "yaml", "text"}
    assert not [block.place for block in pages.blocks(page) if block.kind not in kinds]


def test_every_command_and_option_exists() -> None:
    shown = [(command.place, command.words) for page in PAGES for command in pages.commands(page)]
    shown += [(page.name, words) for page in PAGES for words in pages.inline_commands(page)]
    wrong = [f"{place}: {words}: {problem}" for place, words in shown for problem in unknown(words)]
    assert not wrong, "\n".join(wrong)
    assert len(shown) > 40


@cache
def whole_command() -> Any:
    return get_command(app)


def unknown(words: str) -> list[str]:
    """Commands and options of ours that there are not."""
    if "shadowlab " not in words or words.startswith(("git", "pip", "make")):
        return []
    command, rest = whole_command(), shlex.split(words[words.index("shadowlab ") :])[1:]
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {"--help", "-h"}.union(*([*one.opts, *one.secondary_opts] for one in command.params))
    return [word for word in rest if word.startswith("-") and word.split("=")[0] not in known]


def test_what_is_named_is_there_and_what_is_listed_is_shown() -> None:
    for place in ELSEWHERE:
        file, _, name = place.partition("::")
        assert (ROOT / file).is_file(), place
        if name:
            functions = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            assert name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, place
    shown = {command.words for page in PAGES for command in pages.commands(page)}
    assert not (SHORTER.keys() | INSTEAD.keys() | RUN_ELSEWHERE) - shown, "listed, and on no page"


def test_make_does_what_the_pages_say() -> None:
    """Without running it: it takes the three stages of the README, and installs what the pages install."""
    planned = subprocess.run(
        ["make", "--dry-run", "VENV=absent", "quickstart", "check", "test", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    run = [line for line in planned.splitlines() if line.startswith("absent/bin/shadowlab ")]
    assert run == [f"absent/bin/{command.words}" for command in stages_of_the_readme()[:3]]
    assert "source absent/bin/activate" in planned
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    asked = {name for text in texts for names in re.findall(r"-e \"\.\[([\w,-]+)\]", text) for name in names.split(",")}
    assert asked == extras.keys()


@pytest.mark.parametrize("page", [README, DOCS / "your-loop.md", DOCS / "architecture.md"], ids=lambda page: page.name)
def test_python_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's block takes the loop of the page that it leads to."""
    monkeypatch.chdir(tmp_path)
    loop, *_ = [block.text for block in pages.blocks(DOCS / "your-loop.md") if block.kind == "python"]
    names: dict[str, object] = {}
    if page.name == "README.md":
        exec(loop, names)
    for block in pages.blocks(page):
        if block.kind == "python":
            exec(compile(block.text, block.place, "exec"), names)
    assert len(names) > 3


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in pages.blocks(page) if block.kind == "yaml"],
    ids=lambda block: block.place,
)
def test_yaml_is_a_configuration(block: pages.Block, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(block.text, encoding="utf-8")
    load_config(file=str(file))


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those between pages of docs/ are checked when the site is built."""
    links = {found.split("#")[0] for file in (README, ROOT / "CONTRIBUTING.md") for found in pages.links(file)}
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]


@pytest.mark.parametrize(
    "page", [DOCS / "architecture.md", DOCS / "tasks.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_files_that_are_named_exist(page: Path) -> None:
    """By their path from the top, or by their name alone."""
    names = {
        file.name
        for folder in ("diagnostics", "shadowlab", "cli", "tests", "scripts", "docs")
        for file in (ROOT / folder).rglob("*.*")
    }
    assert not [
        file
        for file in pages.named_files(page)
        if not (ROOT / file).exists() and file not in names and "NAME" not in file
    ]


def test_a_checkpoint_loads_as_printed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names that the page has, of the README's training."""
    run = min(trained.glob("runs/tiny-train-*"))
    shutil.copytree(min(run.glob("checkpoints/step-*")), tmp_path / "runs/NAME/checkpoints/step-00000200")
    monkeypatch.chdir(tmp_path)
    [block] = [block for block in pages.blocks(DOCS / "survive.md") if block.kind == "python"]
    names: dict[str, object] = {}
    exec(compile(block.text, block.place, "exec"), names)
    assert "attn2" not in " ".join(name for name, _ in names["unet"].named_parameters())  # type: ignore[attr-defined]


def test_every_public_name_of_diagnostics_has_its_place_in_the_api() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert not [name for name in diagnostics.__all__ if f"\n::: diagnostics.{name}\n" not in page]
