"""Reading latents: they are the pictures' as they are now, or the run does not begin."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from shadowlab.errors import UserError
from shadowlab.latents import cache
from shadowlab.latents.reading import LatentDataset, encode_command, require_index
from shadowlab.settings.schema import Config
from shadowlab.tasks.shadow.light import embed_light
from shadowlab.tasks.shadow.samples import collate
from shadowlab.training.source import open_source
from tests import tiny
from tests.latents.filled import cached_config, content, copied, dataset_and_task, encode, source_of
from tests.tasks.shadow.sound import encode as as_png
from tests.tasks.shadow.sound import shadow_picture, sound_pictures


@pytest.fixture(scope="module")
def filled(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """Data and their cache. Do not write into them."""
    root = tmp_path_factory.mktemp("filled")
    folders = copied(stage_folder, root)
    encode(cached_config(folders, root))
    return folders, root


@pytest.fixture
def mine(filled: tuple[dict[str, Path], Path], tmp_path: Path) -> tuple[dict[str, Path], Path]:
    """A copy that may be changed, modification times as they were."""
    shutil.copytree(filled[1] / "latents", tmp_path / "latents")
    return copied(filled[0], tmp_path), tmp_path


def test_latents_are_those_of_the_step(filled: tuple[dict[str, Path], Path]) -> None:
    """Bit for bit where the step's batch is one sample; within rounding where a convolution sees several."""
    config = cached_config(*filled)
    dataset, task = dataset_and_task(config)
    source = source_of(config)
    assert not source.notices
    for i in range(len(dataset)):
        wanted, got = task.encode(collate([dataset[i]]), torch.tensor([7])), source.read([i], torch.tensor([7]))
        assert got.ids == wanted.ids and got.positions.tolist() == [7]
        for name, tensor in wanted.tensors().items():
            assert torch.equal(got.tensors()[name], tensor), name
    wanted, got = task.encode(collate([dataset[i] for i in (4, 1, 6)])), source.read([4, 1, 6])
    assert got.ids == wanted.ids and got.positions.tolist() == wanted.positions.tolist()
    assert torch.equal(got.conditions.embedding, wanted.conditions.embedding)
    for name, tensor in wanted.tensors().items():
        torch.testing.assert_close(got.tensors()[name], tensor, rtol=0, atol=1e-4)


def test_without_a_cache_pictures_are_read(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    dataset, task = dataset_and_task(config)
    source = open_source(config, dataset, task, range(8))
    assert source.dataset is dataset
    assert len(pickle.dumps((dataset, source.collate))) < 100_000, "workers get no VAE"


def test_an_edited_light_needs_no_new_encoding(mine: tuple[dict[str, Path], Path]) -> None:
    metadata = mine[0]["data"] / "metadata.json"
    content = json.loads(metadata.read_text())
    content["img_00002"]["theta"] = 33.0
    metadata.write_text(json.dumps(content))
    embedding = source_of(cached_config(*mine)).read([2]).conditions.embedding
    assert torch.equal(embedding, embed_light(torch.tensor([[33.0, 90.0, 4.0]])))


def test_copied_data_are_known_by_their_content(mine: tuple[dict[str, Path], Path]) -> None:
    for file in (mine[0]["data"] / "masks").iterdir():
        os.utime(file, (1, 1))
    [notice] = source_of(cached_config(*mine)).notices
    assert "8 pictures (first masks/img_00000.png)" in notice
    encode(cached_config(*mine))
    assert not source_of(cached_config(*mine)).notices


def test_workers_may_have_it(filled: tuple[dict[str, Path], Path]) -> None:
    source = source_of(cached_config(*filled))
    dataset = source.dataset
    sent = pickle.dumps((dataset, source.collate))
    assert len(sent) < 100_000, "no VAE in it"
    again = pickle.loads(sent)[0]
    assert torch.equal(again[3].latents["data"], dataset[3].latents["data"])


def _other_picture(folders: dict[str, Path], root: Path) -> None:
    (folders["data"] / "shadows" / "img_00002.png").write_bytes(as_png(shadow_picture(99)))


def _swapped_pictures(folders: dict[str, Path], root: Path) -> None:
    """Sizes may be equal; times and content are not those of the name."""
    first, second = (folders["data"] / "objects" / f"img_0000{i}.png" for i in (2, 3))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def _new_sample(folders: dict[str, Path], root: Path) -> None:
    for role, data in sound_pictures(50).items():
        (folders["data"] / f"{role}s" / "img_00050.png").write_bytes(data)
    metadata = folders["data"] / "metadata.json"
    light = {"theta": 1.0, "phi": 1.0, "size": 4.0}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"img_00050": light}))


def _other_vae(folders: dict[str, Path], root: Path) -> None:
    torch.manual_seed(1)
    AutoencoderKL(**tiny.VAE_CONFIG).save_pretrained(folders["vae"])


def _lost_entry(folders: dict[str, Path], root: Path) -> None:
    sorted((root / "latents").glob("??/*"))[0].unlink()


def _damaged_index(folders: dict[str, Path], root: Path) -> None:
    file = root / "latents" / "index.json"
    file.write_text(file.read_text()[:-20])


def _no_cache(folders: dict[str, Path], root: Path) -> None:
    shutil.rmtree(root / "latents")


def _a_file(folders: dict[str, Path], root: Path) -> None:
    _no_cache(folders, root)
    (root / "latents").write_text("")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_picture, r"sample img_00002: shadows/img_00002\.png has changed since \S+latents was encoded"),
        (_swapped_pictures, r"sample img_00002: objects/img_00002\.png has changed since"),
        (_new_sample, r"sample img_00050: \S+/img_00050\.png is not in the latent cache"),
        (_other_vae, r"latents: not this run's latents \(vae [0-9a-f]{12}, not [0-9a-f]{12}\)"),
        (_lost_entry, r"sample img_0000\d: its (data|concatenated) latent \S+\.safetensors is missing"),
        (_damaged_index, r"index\.json: damaged"),
        (_no_cache, r"index\.json: no such file: no latent cache"),
        (_a_file, r"index\.json: cannot be read \(Not a directory\)"),
    ],
)
def test_a_stale_cache_is_not_begun_with(
    mine: tuple[dict[str, Path], Path], change: Callable[[dict[str, Path], Path], None], words: str
) -> None:
    change(*mine)
    config = cached_config(*mine)
    with pytest.raises(UserError, match=words) as caught:
        source_of(config)
    assert str(caught.value).endswith(f"; run: {encode_command(config)}")
    assert "\n" not in str(caught.value)
    if change is not _a_file:
        encode(config)
        source_of(config)  # the fix works


def test_a_cache_of_another_size_is_reported_before_the_stages(mine: tuple[dict[str, Path], Path]) -> None:
    config = cached_config(*mine, "data.image_size=64")
    with pytest.raises(UserError, match=r"latents of pictures with 32 pixels a side, not 64 .*data\.image_size=64"):
        require_index(config)
    require_index(cached_config(*mine))


@pytest.mark.parametrize("field", ["version", "dtype", "task"])
def test_a_cache_of_another_recipe_is_refused(mine: tuple[dict[str, Path], Path], field: str) -> None:
    """As an older version of this project, or one that encoded in half precision, would have left it."""
    file = mine[1] / "latents" / "index.json"
    content = json.loads(file.read_text())
    content["recipe"][field] = {"version": 0, "dtype": "float16", "task": "albedo"}[field]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"not this run's latents \({field} "):
        source_of(cached_config(*mine))


def test_a_forged_index_leads_nowhere(mine: tuple[dict[str, Path], Path]) -> None:
    """A recipe or picture that is only claimed has no entry under its key."""
    _other_vae(*mine)
    config = cached_config(*mine)
    _, task = dataset_and_task(config)
    file = mine[1] / "latents" / "index.json"
    content = json.loads(file.read_text())
    content["recipe"]["vae"] = cache.Recipe.of(task, config.data.image_size).vae
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"sample img_00000: its data latent \S+ is missing"):
        source_of(config)


def test_a_damaged_entry_names_sample_file_and_fix(mine: tuple[dict[str, Path], Path]) -> None:
    config = cached_config(*mine)
    source = source_of(config)
    assert isinstance(source.dataset, LatentDataset)
    file = cache.entry_path(mine[1] / "latents", source.dataset._keys[5]["data"])
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    source.read([4])
    with pytest.raises(UserError) as caught:
        source.read([5])
    assert str(caught.value).startswith(f"sample img_00005: {file}: damaged")
    assert str(caught.value).endswith(f"run: {encode_command(config)}")


def test_only_what_is_read_has_to_be_there(mine: tuple[dict[str, Path], Path]) -> None:
    """Held-out samples are judged by their pictures."""
    config = cached_config(*mine)
    _other_picture(*mine)
    dataset, task = dataset_and_task(config)
    open_source(config, dataset, task, [0, 1, 3])
    with pytest.raises(UserError, match="img_00002"):
        open_source(config, dataset, task, [0, 1, 2])


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["model.vae=random", "seed=3"], "--set model.vae=random --seed 3"),
        (["model.weights=x/y", "model.vae=same"], "--set model.vae=x/y/vae"),
        (["data.path=my data"], "--data 'my data' --out latents"),
        (["task=another"], "--set task=another"),
    ],
)
def test_the_fix_is_a_whole_command(assignments: list[str], words: str) -> None:
    config: Config = tiny.config_of("x/y", "data.latents=latents", *assignments)
    assert words in encode_command(config)


# --- mirrored pictures -----------------------------------------------------------------------------------------------


def test_both_sides_are_kept_and_read_where_the_pictures_would_be_mirrored(mine: tuple[dict[str, Path], Path]) -> None:
    """Encoded from mirrored pictures: the mirror image of a latent is another tensor."""
    flip = "data.augment.flip=0.5"
    plain = content(mine[1] / "latents")
    report = encode(cached_config(*mine, flip))
    assert report.num_kept == report.num_encoded == report.num_latents // 2
    kept = content(mine[1] / "latents")
    assert all(kept[name] == data for name, data in plain.items() if name != "index.json")
    dataset, task = dataset_and_task(cached_config(*mine, flip))
    from_latents = open_source(cached_config(*mine, flip), dataset, task, range(8), augmented=True)
    pictures = open_source(tiny.stage_config(mine[0], mine[1], flip), dataset, task, range(8), augmented=True)
    assert from_latents.augmented is not None and pictures.augmented is not None
    sides = set()
    for position in range(12):
        place = torch.tensor([position])
        one, other = (
            source.encode(source.collate([source.augmented(3, position)]), place)  # type: ignore[misc]
            for source in (pictures, from_latents)
        )
        for name, tensor in one.tensors().items():
            assert torch.equal(other.tensors()[name], tensor), name
        sides.add(one.data.numpy().tobytes())
        mirrored_latent = source_of(cached_config(*mine)).read([3]).data.flip(-1)
        assert not torch.allclose(one.data, mirrored_latent, atol=1e-3)
    assert len(sides) == 2


def test_a_cache_of_one_side_is_refused_for_a_flip_and_one_of_both_serves_all(
    mine: tuple[dict[str, Path], Path],
) -> None:
    config = cached_config(*mine, "data.augment.flip=0.5")
    dataset, task = dataset_and_task(config)
    for ask in (lambda: require_index(config), lambda: open_source(config, dataset, task, [0], augmented=True)):
        with pytest.raises(UserError, match="holds no latents of mirrored pictures") as caught:
            ask()
        assert str(caught.value).endswith(f"run: {encode_command(config)}")
    assert "--set data.augment.flip=0.5" in encode_command(config)
    open_source(config, dataset, task, [0])  # overfit reads samples as they are
    encode(config)
    require_index(config)
    require_index(cached_config(*mine))
    assert not source_of(cached_config(*mine)).notices
