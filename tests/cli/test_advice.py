"""What users are told to type: an option where the command has one, and nothing that is on already."""

import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from cli.errors import reports_errors
from cli.request import with_request
from shadowlab.planning.run import _what_to_try
from shadowlab.settings import describe_keys, load_config

ROOT = Path(__file__).parents[2]
# Options of `plan` alone: the stages that these texts speak of take the key.
OF_PLAN = {"train.batch_size", "model.gradient_checkpointing"}


def test_no_text_offers_a_key_for_which_there_is_an_option() -> None:
    with_option = {key.name for key in describe_keys() if key.marks.option} - OF_PLAN
    found = []
    for folder in ("cli", "shadowlab", "diagnostics"):
        for file in (ROOT / folder).rglob("*.py"):
            found += [(file.name, key) for key in re.findall(r"--set ([a-z_]+(?:\.[a-z_]+)*)", file.read_text())]
    assert len(found) > 10 and [one for one in found if one[1] in with_option] == []


def test_a_plan_that_does_not_fit_offers_no_checkpointing_that_is_on() -> None:
    plain = load_config(preset="tiny")
    assert "--checkpointing" in _what_to_try(plain) and "--batch" in _what_to_try(plain)
    tight = load_config(preset="tiny", assignments=["model.gradient_checkpointing=true", "train.batch_size=1"])
    assert "--checkpointing" not in _what_to_try(tight) and "--batch" not in _what_to_try(tight)
    assert "data.image_size" in _what_to_try(tight)


@pytest.mark.parametrize("on", [False, True])
def test_out_of_memory_offers_no_checkpointing_that_is_on(on: bool) -> None:
    def train(request: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    app = typer.Typer()
    app.command()(reports_errors(with_request(train)))
    result = CliRunner().invoke(app, ["--set", f"model.gradient_checkpointing={str(on).lower()}"])
    assert result.exit_code == 3, result.output
    assert ("gradient_checkpointing=true" in result.output) is not on and "batch_size=N" in result.output
