"""TensorBoard itself, over its HTTP API, on a run of the command line: every leaf module is there."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from cli.main import app
from diagnostics.layers import leaf_modules
from diagnostics.tensorboard import block_of
from shadowlab.unet import remove_cross_attention


@pytest.fixture(scope="module")
def run(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, then a resume to four: as a user does it."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {
        "model.vae": stage_folder["vae"],
        "data.image_size": 32,
        "output_dir": runs,
        "train.batch_size": 2,
        "validation.num_samples": 2,
        "diagnostics.statistics_every": 1,
        "diagnostics.histograms_every": 2,
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    source = ["--weights", str(stage_folder["unet"]), "--data", str(stage_folder["data"])]
    command = ["train", "--run", "board", "--skip-stages", *source, *assignments]
    first = CliRunner().invoke(app, [*command, "--max-steps", "2"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, [*command, "--max-steps", "4", "--resume"])
    assert second.exit_code == 0, second.output
    return runs / "board"


@pytest.fixture(scope="module")
def api(run: Path) -> Iterator[str]:
    """Address of a TensorBoard server on the run; it chooses a free port itself and prints it."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--load_fast", "false", "--reload_interval", "1"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if "http://" in line:
                yield line[line.index("http://") :].split()[0].rstrip("/")
                break
        else:
            pytest.fail("TensorBoard printed no address")
    finally:
        server.terminate()
        server.wait(timeout=20)


def fetch(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)


def shown_steps(api: str) -> list[int]:
    """Steps of train/loss that the server shows, once it has read both event files in the background."""
    for _ in range(90):
        try:
            points = fetch(f"{api}/data/plugin/scalars/scalars?run=tensorboard&tag=train/loss")
        except urllib.error.HTTPError:  # not read yet
            points = []
        if len(points) >= 4:
            break
        time.sleep(1)
    return [step for _, step, _ in points]


@pytest.mark.slow
def test_every_leaf_module_has_activation_and_gradient_norms(run: Path, api: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(run / "checkpoints" / "step-00000004" / "unet")
    remove_cross_attention(unet)
    leaves = leaf_modules(unet)
    shown_steps(api)
    tags = {tag for listing in fetch(f"{api}/data/plugin/scalars/tags").values() for tag in listing}
    missing = [name for name in leaves if f"{block_of(name)}/activation_norm/{name}" not in tags]
    assert not missing
    # time_proj included, though nothing flows back to the sinusoids of t: it is drawn as 0.
    assert not [name for name in leaves if f"{block_of(name)}/gradient_norm/{name}" not in tags]
    histograms = fetch(f"{api}/data/plugin/histograms/tags")
    assert any(tag.startswith("histogram_gradient/conv_in") for listing in histograms.values() for tag in listing)


@pytest.mark.slow
def test_steps_are_monotone_across_a_resume(run: Path, api: str) -> None:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == [1, 2, 3, 4]
    assert shown_steps(api) == [1, 2, 3, 4]
