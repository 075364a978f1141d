"""Filling the cache: the same bytes every time, nothing bad kept, nothing done twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shadowlab.errors import StageFailedError, UserError
from shadowlab.latents import encode as encoding
from shadowlab.latents.cache import ENCODING_VERSION
from shadowlab.models.vae import ImageVae, load_vae
from shadowlab.settings import Config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.samples import collate
from shadowlab.tasks.shadow.task import ShadowTask
from tests.latents.filled import cached_config, content, copied, encode, source_of
from tests.tasks.shadow.sound import encode as as_png
from tests.tasks.shadow.sound import shadow_picture


def test_two_encodings_are_the_same_bytes(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """With workers or without."""
    for name, workers in (("a", 0), ("b", 2)):
        report = encode(cached_config(stage_folder, tmp_path / name, f"data.num_workers={workers}"))
        assert (report.num_samples, report.num_latents, report.num_encoded, report.num_kept) == (8, 16, 16, 0)
    wanted, got = content(tmp_path / "a" / "latents"), content(tmp_path / "b" / "latents")
    assert wanted == got
    assert {Path(name).suffix for name in wanted} == {".json", ".safetensors"}


def test_pictures_that_samples_share_are_encoded_once(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object under eight lights: nine passes through the VAE, not sixteen."""
    folders = copied(stage_folder, tmp_path)
    first, *others = sorted((folders["data"] / "objects").iterdir())
    for other in others:
        other.write_bytes(first.read_bytes())
    calls = []
    original = ImageVae.encode
    monkeypatch.setattr(ImageVae, "encode", lambda self, images: calls.append(len(images)) or original(self, images))
    assert encode(cached_config(folders, tmp_path)).num_latents == 9
    assert calls == [1] * 9


def test_an_interrupted_encoding_goes_on(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cached_config(stage_folder, tmp_path)
    original, written = encoding.write_entry, []

    def killed(*arguments: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        original(*arguments)
        written.append(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_entry", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(config)
    with pytest.raises(UserError, match=r"index\.json: no such file: .* did not come to its end; run: shadowlab data"):
        source_of(config)
    report = encode(config)
    assert (report.num_kept, report.num_encoded, report.num_damaged) == (5, 11, 0)
    encode(cached_config(stage_folder, tmp_path / "whole"))
    assert content(tmp_path / "latents") == content(tmp_path / "whole" / "latents")
    assert encode(config).num_encoded == 0


@pytest.mark.parametrize("part", ["shadow", "object"])
def test_a_latent_that_is_not_finite_stops_it(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """It names the sample, and of that sample nothing is kept, not the sound half of it either."""
    config = cached_config(stage_folder, tmp_path)
    original, seen = ShadowTask.encode_part, []

    def spoiled(self: ShadowTask, name: Any, batch: Any) -> Tensor:
        latent = original(self, name, batch)
        if batch.ids == ["img_00003"] and name == {"shadow": "data", "object": "concatenated"}[part]:
            latent[0, 2, 1, 1] = float("nan")
        seen.append(batch.ids)
        return latent

    with monkeypatch.context() as patch:
        patch.setattr(ShadowTask, "encode_part", spoiled)
        with pytest.raises(StageFailedError, match=rf"sample img_00003: 1 of \d+ values of its .*{part}") as caught:
            encode(config)
    assert caught.value.exit_code == 1
    assert len(content(tmp_path / "latents")) == 6  # of the three samples before; no index
    assert encode(config).num_kept == 6


def test_a_damaged_entry_is_encoded_again(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = cached_config(stage_folder, tmp_path)
    encode(config)
    wanted = content(tmp_path / "latents")
    file = sorted((tmp_path / "latents").glob("??/*"))[4]
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    report = encode(config)
    assert (report.num_encoded, report.num_damaged, report.num_kept) == (1, 1, 15)
    assert content(tmp_path / "latents") == wanted


def test_only_what_changed_is_encoded_again(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    folders = copied(stage_folder, tmp_path)
    config = cached_config(folders, tmp_path)
    encode(config)
    (folders["data"] / "shadows" / "img_00002.png").write_bytes(as_png(shadow_picture(99)))
    report = encode(config)
    assert (report.num_encoded, report.num_kept, report.num_unused) == (1, 15, 1)
    source_of(config)


def test_a_picture_that_changes_meanwhile_is_not_kept_under_its_old_key(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = copied(stage_folder, tmp_path)
    original = encoding._encode

    def slow(task: Any, sample: Any, name: str, parts: Any) -> Any:
        if name == "img_00001":
            (folders["data"] / "shadows" / "img_00001.png").write_bytes(as_png(shadow_picture(99)))
        return original(task, sample, name, parts)

    monkeypatch.setattr(encoding, "_encode", slow)
    with pytest.raises(UserError, match=r"sample img_00001: shadows/img_00001\.png changed while .* being encoded"):
        encode(cached_config(folders, tmp_path))
    assert len(content(tmp_path / "latents")) == 2


def test_a_folder_that_cannot_be_written(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(UserError, match=r"latents is a file, not a folder; choose another --out"):
        encode(cached_config(stage_folder, tmp_path))


def test_the_encoder_has_a_digest_of_its_content(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    vae = load_vae(str(stage_folder["vae"]))
    digest = vae.encoder_digest()
    assert load_vae(str(copied({"vae": stage_folder["vae"]}, tmp_path)["vae"])).encoder_digest() == digest
    changes = (
        lambda model: model.decoder.conv_out.bias.data.add_(1.0),
        lambda model: model.encoder.conv_out.bias.data[0].add_(1e-6),
        lambda model: model.quant_conv.weight.data.mul_(2.0),
        lambda model: model.register_to_config(scaling_factor=0.5),
        lambda model: model.half(),
    )
    digests = []
    for change in changes:
        change(vae.autoencoder)
        digests.append(vae.encoder_digest())
    assert digests[0] == digest  # the decoder makes no latent
    assert len({*digests}) == len(changes)


def test_the_vae_computes_in_float32_under_tf32(stage_folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """So one cache serves every precision."""
    vae, inside = load_vae(str(stage_folder["vae"])), []
    original = vae.autoencoder.encode
    monkeypatch.setattr(vae.autoencoder, "encode", lambda x: inside.append(_allows_tf32()) or original(x))
    before = _allows_tf32()
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        vae.encode(torch.zeros(1, 3, 32, 32))
        assert inside == [(False, False)]
        assert _allows_tf32() == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _allows_tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


VERSION_1 = [-0.003523, 0.104460, 0.044922, 0.207143, 0.023550, 0.107611, -0.027399, 0.808127, 0.237499, 1.131136]


def test_what_is_encoded_is_what_this_version_means() -> None:
    """Decoding, compositing, resizing and encoding are as they were when ENCODING_VERSION got its number.

    Where they come to give other numbers, raise ENCODING_VERSION and note them here, or caches that users have would
    be taken for what the code now makes. (Of a new embedded VAE note the last four alone.)
    """
    sample = open_dataset("embedded", 96)[0]
    encoded = open_task(Config(), torch.device("cpu")).encode(collate([sample]))
    tensors = (sample.object_image, sample.mask, sample.shadow, encoded.data, encoded.conditions.concatenated)
    numbers = [float(value) for tensor in tensors for value in (tensor.mean(), tensor.std())]
    assert ENCODING_VERSION == 1
    assert numbers == pytest.approx(VERSION_1, abs=2e-4)
