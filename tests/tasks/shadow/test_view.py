"""The camera of the baselines: its geometry, its file, and how it is found from a training split."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from shadowlab.console import Reporter
from shadowlab.data import split_by_object
from shadowlab.errors import UserError
from shadowlab.settings import load_config
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.render import camera
from shadowlab.tasks.shadow.view import DEFAULT_FILE, View, default_fit, default_view, read_fit, read_view
from shadowlab.tasks.shadow.view_fit import fit_view

RENDERED = View(camera.ELEVATION, camera.DISTANCE, camera.FIELD_OF_VIEW, 1.0)


def test_view_sees_points_where_the_renderer_does() -> None:
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    column, row, depth = RENDERED.project(*points.T, 96, 96)
    expected, expected_depth = camera.project(points, 96)
    np.testing.assert_allclose(np.stack([column, row], axis=1), expected, atol=1e-9)
    np.testing.assert_allclose(depth, expected_depth)
    x, y = RENDERED.ground(column, row, 96, 96)
    on_ground = RENDERED.project(x, y, np.zeros(50), 96, 96)
    np.testing.assert_allclose(on_ground[:2], (column, row), atol=1e-9)


def test_nothing_is_ground_above_the_horizon() -> None:
    x, y = View(5.0, 8.0, 60.0, 1.0).ground(50.0, [1.0, 99.0], 100, 100)
    assert np.isnan([x[0], y[0]]).all() and np.isfinite([x[1], y[1]]).all()


def _make_set(folder: Path, view: View, num_objects: int = 5) -> Path:
    """Objects whose shadows are the inflated silhouette's own under `view`."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:64, :64] + 0.5
    metadata: dict[str, dict[str, object]] = {}
    for name in ("objects", "masks", "shadows"):
        (folder / name).mkdir(parents=True)
    for k in range(num_objects):
        wide, high = rng.uniform(4, 9), rng.uniform(6, 12)
        mask = (np.abs(columns - 32) < wide) & (np.abs(rows - 30) < high)
        theta, phi, size, name = 38.0, 30.0 + 100 * k % 330, 2.0, f"sample_{k}"
        shadow = inflated_silhouette(mask, theta, phi, size, view)
        Image.fromarray(np.full((64, 64, 3), 90 + 10 * k, np.uint8)).save(folder / "objects" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        Image.fromarray(np.round(shadow * 255).astype(np.uint8)).save(folder / "shadows" / f"{name}.png")
        metadata[name] = {"theta": theta, "phi": phi, "size": size, "object": f"o{k}"}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_fit_finds_the_view_from_the_training_split_alone(tmp_path: Path) -> None:
    data = _make_set(tmp_path / "set", View(38.0, 9.0, 27.0, 1.3))
    config = load_config(options={"data.path": str(data)})
    fit = fit_view(config, tmp_path / "view.json", Reporter(active=False))
    assert fit.figures["soft_iou"] > 0.9 and abs(fit.view.elevation - 38) < 6
    opened = open_dataset(data, 64)
    split = split_by_object(opened.object_ids, config.data.validation_fraction, config.seed)
    assert set(fit.objects) == {opened.object_ids[i] for i in split.train}
    assert read_fit(tmp_path / "view.json") == fit and read_view(tmp_path / "view.json") == fit.view
    assert fit.seen_objects(opened) == set(fit.objects)

    # What is held out decides nothing: shadows of the validation split are exchanged.
    for i in split.validation:
        Image.fromarray(np.full((64, 64), 7, np.uint8)).save(data / "shadows" / f"{opened.ids[i]}.png")
    again = fit_view(config, tmp_path / "view.json", Reporter(active=False))
    assert again.view == fit.view and again.figures == fit.figures


def test_command_writes_the_file_and_says_what_it_is(tmp_path: Path) -> None:
    data, out = _make_set(tmp_path / "set", RENDERED, num_objects=2), tmp_path / "view.json"
    done = CliRunner().invoke(app, ["fit-baselines", "--data", str(data), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    document, fit = json.loads(done.stdout), read_fit(out)
    assert document["view"] == asdict(fit.view) and document["figures"] == fit.figures
    assert document["num_samples"] == len(fit.objects) == 1 and "training split" in done.stderr
    missing = CliRunner().invoke(app, ["fit-baselines", "--data", str(tmp_path / "none")])
    assert missing.exit_code == 2 and "no such data set" in missing.stderr


def test_fit_replaces_a_fit_and_nothing_else(tmp_path: Path) -> None:
    data = _make_set(tmp_path / "set", RENDERED, num_objects=2)
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(UserError, match=r"notes\.json: there is something else"):
        fit_view(load_config(options={"data.path": str(data)}), tmp_path / "notes.json", Reporter(active=False))
    assert (tmp_path / "notes.json").read_text() == "[1]"


def test_default_was_fitted_and_not_on_the_embedded_set() -> None:
    fit = default_fit()
    assert fit.view == default_view() and fit.objects and fit.fingerprint and fit.num_samples >= len(fit.objects)
    assert fit.seen_objects(open_dataset("embedded", 128)) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "make the file with"),
        ("[]", "no view"),
        ("{}", "no view"),
        ('{"view": {"elevation": 30}}', "distance is not a number"),
        ('{"view": {"elevation": true, "distance": 8, "field_of_view": 30, "thickness": 1}}', "elevation is not"),
        ('{"view": {"elevation": 95, "distance": 8, "field_of_view": 30, "thickness": 1}}', "elevation = 95"),
        ('{"view": {"elevation": NaN, "distance": 8, "field_of_view": 30, "thickness": 1}}', "elevation = nan"),
        (DEFAULT_FILE.read_text().replace('"objects": {', '"objects": 3, "was": {'), "damaged"),
    ],
)
def test_file_that_is_no_fit_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "view.json").write_text(content)
    with pytest.raises(UserError, match=rf"view\.json: .*{message}"):
        read_view(tmp_path / "view.json")
    with pytest.raises(UserError, match="no such file"):
        read_view(tmp_path / "none.json")
