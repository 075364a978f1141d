"""The house keeps its law, and the law finds what breaks it (see `tests/house.py`)."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import diagnostics
from tests import house
from tests.house import House, room

ROOT = Path(__file__).parents[1]
OURS = House.read(ROOT, "diagnostics", "shadowlab", "cli")
Law = Callable[[House], list[str]]

OPENINGS = {
    "diagnostics/incidents/evidence.py torch.load": "of a file that the door opened",
    "diagnostics/incidents/template.py torch.load": "repro.py runs where there is torch alone",
    "diagnostics/incidents/repro.py files('diagnostics.incidents').joinpath('template.py').read_text": "of the package",
    "shadowlab/data/archive.py tarfile.open": "of a file that the door opened",
    "shadowlab/bench/mutants/data.py Image.open": "of bytes",
    "shadowlab/data/decoding.py Image.open": "of bytes",
    "shadowlab/packs/pack.py tarfile.open": "of a file that the door opened",
    "shadowlab/latents/cache.py safe_open": "the library takes names alone; behind require_file",
    "shadowlab/models/vae.py safe_open": "the library takes names alone; behind require_file",
    "shadowlab/inference/saved_unet.py safe_open": "the library takes names alone; behind require_file",
    "shadowlab/training/capture.py load_file": "the library takes names alone; behind require_file",
    "shadowlab/training/saved_file.py load_file": "the library takes names alone; behind require_file",
    "shadowlab/training/checkpoint_files.py os.open": "of a folder or file of ours, to be synced",
    "shadowlab/tasks/shadow/render/gathering.py os.open": "of a folder of ours, to be locked",
    "shadowlab/tasks/shadow/result_picture.py Image.open": "of a file that the door opened",
    "shadowlab/tasks/shadow/render/textures.py Image.open": "of a file that the door opened",
    "shadowlab/planning/measure.py _RESET.write_text": "a file of the kernel's, which cannot be replaced",
    "shadowlab/settings/yaml_text.py yaml.load": "of text, with bounds",
    "shadowlab/exporting/diffusers_folder.py np.load": "of a process of ours, no pickle",
    "shadowlab/exporting/pipeline_trial.py np.load": "of a process of ours, no pickle; shadowlab is not there",
    "shadowlab/tasks/shadow/pipeline/pipeline.py shutil.copy": "it runs where there is diffusers alone",
    "shadowlab/tasks/shadow/pipeline/pipeline.py open": "it runs where there is diffusers alone",
    "shadowlab/tasks/shadow/pipeline/pipeline.py json.load": "it runs where there is diffusers alone",
    "shadowlab/bench/mutants/copied_tree.py shutil.copytree": "of this project's own files",
    "shadowlab/bench/mutants/warm_process.py os.open": "of a folder of ours; nothing of shadowlab is loaded there",
    "shadowlab/standard_streams.py os.open": "of /dev/null",
    "shadowlab/standard_streams.py open": "of a descriptor",
    "shadowlab/views/page/pictures.py Image.open": "of bytes",
    "shadowlab/views/tensorboard/rebuild.py Image.open": "of bytes",
}
"""Where a file is opened by another door than `diagnostics.files`, and why it may be."""

LAWS: list[Law] = [
    house.relative_imports,
    house.upward_imports,
    house.foreign_imports,
    house.early_imports,
    house.open_halls,
    house.circles,
    house.crowded_halls,
    house.pickles,
    house.heavy_imports,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_house_keeps(law: Law) -> None:
    assert not law(OURS), "\n".join(law(OURS))


def test_nobody_goes_past_a_door() -> None:
    users = House.read(ROOT, "diagnostics", "shadowlab", "cli", "examples", "scripts")
    assert not house.deep_imports(users), "\n".join(house.deep_imports(users))


def test_files_are_opened_by_one_door() -> None:
    """What comes from somebody else may be a pipe, a device, a link out of its folder, or gigabytes."""
    assert not house.other_openings(OURS, OPENINGS), "\n".join(house.other_openings(OURS, OPENINGS))


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "(folder / 'a.json').read_text(encoding='utf-8')",
        "path.read_bytes()",
        "path.write_text('x')",
        "json.load(file)",
        "Image.open(path)",
        "tarfile.open(path)",
        "safe_open(path, framework='pt')",
        "shutil.copyfile(a, b)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_another_door_is_found(line: str) -> None:
    tree = House({"shadowlab/runs.py": f"def read(path):\n    return {line}\n"})
    (found,) = house.other_openings(tree, {})
    assert found.startswith("shadowlab/runs.py:2 calls ") and found.endswith("take diagnostics.files")


def test_a_reason_that_nothing_needs_is_found_and_the_door_itself_is_not() -> None:
    inside = "from diagnostics.files import read_text\ntext = read_text('a')\nsession = Session.open(config)"
    tree = House({"shadowlab/runs.py": inside, "diagnostics/files/opening.py": "os.open(path)"})
    assert not house.other_openings(tree, {})
    assert house.other_openings(tree, {"shadowlab/runs.py open": "gone"}) == [
        "shadowlab/runs.py open: nothing calls it, take it off the list"
    ]


def test_files_and_functions_are_short() -> None:
    assert not house.too_long(OURS), "split them: a noun of their own, a room of their own"


def test_importing_light_rooms_loads_neither_tensorboard_nor_diffusers() -> None:
    """What the sources cannot show: a package of others that loads it for us."""
    views = sorted(name for name in OURS.modules if name.startswith("shadowlab.views."))
    rooms = ["shadowlab.distributed", "shadowlab.settings", "shadowlab.runs", "shadowlab.console", *views]
    rooms += ["shadowlab.stages.train", "shadowlab.doctor"]  # a launcher waits; a doctor may find diffusers broken
    script = (
        "import sys, diagnostics, diagnostics.board\n"
        "print('tensorboard' in sys.modules)\n"
        f"import {', '.join(rooms)}\n"
        "print('diffusers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_public_names_say_what_they_are() -> None:
    doors = [door for door in OURS.modules if room(door) == door and OURS.is_package(door) and OURS.exported(door)]
    assert "diagnostics" in doors and "diagnostics.records" in doors
    for door in doors:
        module = importlib.import_module(door)
        for name in module.__all__:
            public = getattr(module, name)
            if isinstance(public, type) or inspect.isfunction(public):
                assert public.__doc__, f"{door}.{name}"


def test_door_of_diagnostics_names_what_it_has() -> None:
    """Its docstring begins at a symptom and ends at a name."""
    words = set(re.findall(r"`(\w+)[`(]", diagnostics.__doc__ or ""))
    assert words >= {"Watch", "explain", "LayerStatistics", "examine", "board"}
    for word in words:
        assert word in diagnostics.__all__ or f"diagnostics.{word}" in OURS.modules, word


DOOR = 'from shadowlab.data.index import Index\n__all__ = ["Index"]\n'


@pytest.mark.parametrize(
    ("law", "sources", "found"),
    [
        (house.relative_imports, {"shadowlab/data/index.py": "from . import order"}, "shadowlab/data/index.py:1"),
        (house.upward_imports, {"shadowlab/runs.py": "def show():\n    import cli.main"}, "shadowlab/runs.py:2"),
        (house.upward_imports, {"diagnostics/verdict.py": "from shadowlab.runs import RunFolder"}, "shadowlab.runs"),
        (house.upward_imports, {"shadowlab/drill.py": "from tests import tiny"}, "shadowlab does not know"),
        (house.upward_imports, {"shadowlab/drill.py": "import typer"}, "imports typer"),
        (house.foreign_imports, {"diagnostics/verdict.py": "def f():\n    import numpy"}, "imports numpy"),
        (
            house.foreign_imports,
            {"diagnostics/board/tensorboard.py": "from torch.utils.tensorboard import SummaryWriter"},
            "torch.utils.tensorboard",
        ),
        (house.early_imports, {"shadowlab/render.py": "import mitsuba"}, "mitsuba at once"),
        (house.early_imports, {"cli/main.py": "import torch"}, "torch at once"),
        (
            house.deep_imports,
            {
                "shadowlab/data/__init__.py": DOOR,
                "shadowlab/data/index.py": "class Index: ...",
                "shadowlab/stages/train.py": "from shadowlab.data.index import Index",
            },
            "shadowlab.data is the door",
        ),
        (
            house.deep_imports,
            {
                "shadowlab/data/__init__.py": DOOR + "from shadowlab.data.index import secret\n",
                "shadowlab/data/index.py": "class Index: ...\nsecret = 1",
                "shadowlab/stages/train.py": "from shadowlab.data import secret",
            },
            "does not export it",
        ),
        (
            house.deep_imports,
            {
                "shadowlab/data/__init__.py": DOOR,
                "shadowlab/data/index.py": "class Index: ...",
                "shadowlab/stages/train.py": "from shadowlab.data import index",
            },
            "shadowlab.data is the door",
        ),
        (
            house.deep_imports,
            {
                "diagnostics/verdict.py": "class Verdict: ...",
                "cli/errors.py": "from diagnostics.verdict import Verdict",
            },
            "take it from diagnostics",
        ),
        (
            house.deep_imports,
            {
                "shadowlab/data/__init__.py": DOOR,
                "shadowlab/data/index.py": "class Index: ...",
                "shadowlab/stages/train.py": "import shadowlab.data as data\ndef f():\n    return data.index.Index",
            },
            "shadowlab/stages/train.py:3",
        ),
        (
            house.deep_imports,
            {
                "shadowlab/data/__init__.py": DOOR,
                "shadowlab/data/index.py": "class Index: ...",
                "shadowlab/stages/train.py": "import importlib\nimportlib.import_module('shadowlab.data.index')",
            },
            "shadowlab.data is the door",
        ),
        (
            house.upward_imports,
            {"diagnostics/verdict.py": "def f():\n    return __import__('shadowlab.runs')"},
            "diagnostics/verdict.py:2",
        ),
        (
            house.early_imports,
            {"cli/main.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import torch"},
            "torch at once",
        ),
        (
            house.open_halls,
            {"shadowlab/stages/__init__.py": "from shadowlab.stages.train import run", "shadowlab/stages/train.py": ""},
            "is a hall",
        ),
        (
            house.circles,
            {
                "shadowlab/runs.py": "from shadowlab import data",
                "shadowlab/data.py": "def late():\n    from shadowlab.console import Reporter",
                "shadowlab/console.py": "import shadowlab.runs",
            },
            "shadowlab.data -> shadowlab.console",
        ),
        (house.crowded_halls, {f"diagnostics/room{n}.py": "" for n in range(17)}, "diagnostics has 17 rooms"),
        (house.crowded_halls, {f"shadowlab/stages/s{n}.py": "" for n in range(9)}, "shadowlab.stages has 9 rooms"),
        (house.pickles, {"shadowlab/runs.py": "import pickle"}, "imports pickle"),
        (house.pickles, {"shadowlab/runs.py": "import torch\ntorch.save({}, 'x')"}, "calls torch.save"),
        (house.pickles, {"diagnostics/incidents/evidence.py": "import torch\ntorch.load('x')"}, "calls torch.load"),
        (
            house.heavy_imports,
            {
                "shadowlab/settings/__init__.py": "from shadowlab.settings.files import load",
                "shadowlab/settings/files.py": "from shadowlab.models import UNet",
                "shadowlab/models.py": "from diffusers import UNet2DConditionModel as UNet",
            },
            "shadowlab.settings -> shadowlab.settings.files -> shadowlab.models -> diffusers",
        ),
    ],
)
def test_law_finds(law: Law, sources: dict[str, str], found: str) -> None:
    assert any(found in line for line in law(House(sources))), law(House(sources))


@pytest.mark.parametrize(
    ("law", "sources"),
    [
        (house.heavy_imports, {"shadowlab/settings.py": "def load():\n    import diffusers"}),
        (house.circles, {"shadowlab/a.py": "import shadowlab.b", "shadowlab/b.py": "import shadowlab.c"}),
        (house.deep_imports, {"shadowlab/a/x.py": "from shadowlab.a.y import z", "shadowlab/a/y.py": "z = 1"}),
        (house.pickles, {"diagnostics/incidents/evidence.py": "torch.load('x', weights_only=True)"}),
        (house.early_imports, {"cli/main.py": "def main():\n    import torch"}),
        (house.early_imports, {"cli/main.py": "import typing\nif typing.TYPE_CHECKING:\n    import torch"}),
        (
            house.foreign_imports,
            {"diagnostics/board/tensorboard.py": "def f():\n    from torch.utils.tensorboard import SummaryWriter"},
        ),
    ],
)
def test_law_allows(law: Law, sources: dict[str, str]) -> None:
    assert not law(House(sources))


def test_long_files_and_functions_are_found() -> None:
    body = "    pass\n" * 60
    tree = House({"cli/a.py": "x = 1\n" * 351, "cli/b.py": f"def long():\n{body}", "cli/c.py": "x = 1\n" * 350})
    assert house.too_long(tree) == {"cli/a.py": 351, "cli/b.py:long": 61}
