"""One entry: it is what was written, to the last bit, or it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shadowlab.latents import cache
from shadowlab.latents.cache import DamagedEntryError, Recipe, entry_path, read_entry, write_entry

RECIPE = Recipe(task="shadow", image_size=16, vae="a" * 64, dtype="float32")
KEY = RECIPE.key("data", ["1" * 64])
LATENT = torch.linspace(-3, 3, 16).view(4, 2, 2)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_entry(tmp_path, KEY, "data", LATENT)
    assert torch.equal(read_entry(tmp_path, KEY, "data"), LATENT)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_no_bit_can_flip_unseen(tmp_path: Path) -> None:
    """Header, checksum and values: each bit of the file in turn."""
    write_entry(tmp_path, KEY, "data", LATENT)
    path = entry_path(tmp_path, KEY)
    sound = path.read_bytes()
    refused: list[str] = []
    for bit in range(len(sound) * 8):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            latent = read_entry(tmp_path, KEY, "data")
        except DamagedEntryError as error:
            refused.append(str(error))
        else:  # the padding of the header
            assert torch.equal(latent, LATENT) and latent.dtype == torch.float32
    assert len(refused) > len(sound) * 8 * 0.9
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in refused)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_half_a_file_is_refused(tmp_path: Path, length: int) -> None:
    write_entry(tmp_path, KEY, "data", LATENT)
    path = entry_path(tmp_path, KEY)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedEntryError, match="truncated or damaged"):
        read_entry(tmp_path, KEY, "data")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_whoever_wrote_it(tmp_path: Path, value: float) -> None:
    latent = LATENT.clone()
    latent[1, 0, 1] = value
    write_entry(tmp_path, KEY, "data", latent)
    with pytest.raises(DamagedEntryError, match="holds values that are not finite"):
        read_entry(tmp_path, KEY, "data")


@pytest.mark.parametrize("change", ["half", "other key", "other part", "other shape", "no checksum"])
def test_the_checksum_is_of_key_part_dtype_and_shape_too(tmp_path: Path, change: str) -> None:
    other = RECIPE.key("data", ["2" * 64])
    path = entry_path(tmp_path, KEY)
    digest = cache._digest(KEY, "data", LATENT)
    tensors, metadata = {"data": LATENT}, {"sha256": digest}
    if change == "half":
        tensors = {"data": LATENT.half()}
    elif change == "other key":
        metadata = {"sha256": cache._digest(other, "data", LATENT)}  # a file that was moved
    elif change == "other part":
        tensors = {"concatenated": LATENT}
    elif change == "other shape":
        tensors = {"data": LATENT.view(4, 4, 1)}
    else:
        metadata = {}
    path.parent.mkdir()
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DamagedEntryError):
        read_entry(tmp_path, KEY, "data")


def test_whatever_decides_a_latent_decides_its_key() -> None:
    others = [
        RECIPE.key("concatenated", ["1" * 64]),
        RECIPE.key("data", ["2" * 64]),
        RECIPE.key("data", ["1" * 64, "1" * 64]),
        *(
            replace(RECIPE, **change).key("data", ["1" * 64])
            for change in (
                {"task": "albedo"},
                {"image_size": 32},
                {"vae": "b" * 64},
                {"dtype": "float16"},
                {"version": RECIPE.version + 1},
            )
        ),
    ]
    assert len({KEY, *others}) == len(others) + 1
    assert Recipe(**vars(RECIPE)).key("data", ["1" * 64]) == KEY
