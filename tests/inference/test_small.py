"""The model that ships opens by its name, keeps the figures of its README, and beats the shadow that nobody learned."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.ship_model import ship
from shadowlab.inference import find_model, open_model, sample, seeded_noise
from shadowlab.metrics import rmse, soft_iou
from shadowlab.models import WEIGHTS_NAME
from shadowlab.settings import Config, load_config, values
from shadowlab.settings.keys import leaves, marks_of
from shadowlab.tasks.shadow import open_dataset
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.view import default_view
from tests.inference.made import make_run

# Sample -> soft IoU and RMSE of one step from the noise of seed 0, as docs/small.md has them.
RECORDED = {
    "obj_0003_light_0": (0.8089, 0.0760),
    "obj_0011_light_1": (0.8967, 0.0186),
    "obj_0024_light_3": (0.6666, 0.0695),
}


def test_small_opens_by_its_name_and_gives_the_recorded_shadows() -> None:
    model = open_model("small", device="cpu")
    data = open_dataset("embedded", model.config.data.image_size)
    chosen = [data[data.ids.index(name)] for name in RECORDED]
    found, unlearned = {}, []
    for one in chosen:
        batch = model.task.collate([one])
        shadow = sample(model, model.task.encode(batch), seeded_noise((1, 4, 16, 16), 0), 1)
        found[one.id] = (float(soft_iou(shadow, batch.shadow)), float(rmse(shadow, batch.shadow)))
        silhouette = inflated_silhouette(np.asarray(one.mask[0]), *one.light.tolist(), default_view())
        unlearned.append(float(rmse(torch.as_tensor(silhouette)[None, None], batch.shadow)))
    assert found == {name: pytest.approx(figures, abs=2e-3) for name, figures in RECORDED.items()}
    assert np.mean([error for _, error in found.values()]) < np.mean(unlearned)


def test_small_is_what_its_preset_trains_and_stays_below_20_megabytes() -> None:
    place = find_model("small")
    assert (place.unets["exported"] / WEIGHTS_NAME).stat().st_size < 20e6
    shipped, preset = values(open_model(place, device="cpu").config), values(load_config(preset="small"))
    deciding = {name for name, field in leaves(Config) if (marks := marks_of(field)) and marks.decides != "nothing"}
    options = {"data.path", "precision"}  # of the command in docs/small.md
    assert not {name for name in deciding - options if shipped.get(name) != preset.get(name)}


def test_a_run_becomes_a_model_that_ships(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = make_run(stage_folder, tmp_path / "runs")
    ship(str(run), tmp_path / "shipped", "runs/renders")
    averaged, shipped = open_model(run, device="cpu"), open_model(tmp_path / "shipped", device="cpu")
    assert shipped.config.data.path == "runs/renders"
    assert shipped.config.output_dir == "runs"
    for name, tensor in averaged.unet.state_dict().items():
        assert torch.equal(shipped.unet.state_dict()[name], tensor.half().float()), name
