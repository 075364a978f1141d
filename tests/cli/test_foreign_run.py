"""Commands on the records of a watched loop that is not the harness's: a folder anywhere, without config.yaml."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cli.main import app
from diagnostics import NonFiniteError, Watch


def _loop(folder: Path, *, bad_step: int | None = None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, records=folder, incidents=folder / "incidents", statistics_every=4)

    def train_one(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    for index in range(12):
        x = torch.randn(8, 4)
        if index == bad_step:
            x[3, 1] = float("nan")
        watch.step(lambda x=x: train_one(x), batch={"pictures": x})


@pytest.mark.parametrize("bad_step", [None, 9])
def test_every_command_says_what_it_knows(bad_step: int | None, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "mine"
    if bad_step is None:
        _loop(folder)
    else:
        with pytest.raises(NonFiniteError):
            _loop(folder, bad_step=bad_step)
    said = {}
    for command in ("health", "inspect", "report", "why"):
        result = CliRunner().invoke(app, [command, str(folder)])
        said[command] = result.exit_code, result.output
    page = (folder / "reports" / "report.html").read_text()
    if bad_step is None:
        assert said["health"][0] == 0 and "nothing found" in said["health"][1]
        assert "12 steps of a loop that has no stages" in page and "interrupted or killed" not in page
    else:
        assert said["health"][0] == 1 and "nan came in with pictures" in said["health"][1]
        assert said["why"][0] == 0 and "nan came in with pictures" in said["why"][1]
        assert "status incident" in page and "resumed after" not in page
    assert said["inspect"][0] == said["report"][0] == 0 and "3 layers" in said["inspect"][1].replace("3 of 3", "3")
