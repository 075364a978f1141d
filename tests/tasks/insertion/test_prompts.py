"""Prompts in words: each distinct text embedded once, kept by content, the text encoder gone before anything trains."""

import gc
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from cli.main import app
from shadowlab.errors import UserError
from shadowlab.settings import load_config
from shadowlab.tasks import Task, open_task, prompt_texts
from shadowlab.training import open_source
from tests.tasks.insertion.rows import make_rows
from tests.tasks.pipeline import make_pipeline

transformers = pytest.importorskip("transformers")
WIDTH = 16
TEXTS = ["a", "b a", "a", "", "b a", "a"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    root = make_pipeline(tmp_path / "pipeline", WIDTH)
    (root / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": WIDTH}))
    return root


def rows_with(root: Path, texts: list[str]) -> Path:
    path = make_rows(root)
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{first},prompt", *(f'{row},"{text}"' for row, text in zip(rows, texts, strict=True))]))
    return path


def task_of(weights: Path | str, data: Path, *words: str) -> Task[Any]:
    own = [f"model.weights={weights}", f"data.path={data}", "data.image_size=32", "device=cpu", *words]
    return open_task(load_config(preset="insertion-tiny", assignments=own))


def told_by(root: Path, text: str) -> torch.Tensor:
    """By the encoder's own layers, given the tokens of the words and the padding."""
    tokens = [0, *({"a": 2, "b": 3}[word] for word in text.split())]
    encoder = transformers.CLIPTextModel.from_pretrained(root / "text_encoder").eval()
    with torch.no_grad():
        found: torch.Tensor = encoder(torch.tensor([tokens + [1] * (77 - len(tokens))])).last_hidden_state[0]
    return found


def test_each_text_is_embedded_once_and_every_row_is_told_its_own(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(pipeline, rows_with(tmp_path / "data", TEXTS))
    asked: list[str] = []
    embedding = prompt_texts._embedding

    def noting(tokenizer: Any, encoder: Any, text: str, width: int, root: Path) -> torch.Tensor:
        asked.append(text)
        return embedding(tokenizer, encoder, text, width, root)

    monkeypatch.setattr(prompt_texts, "_embedding", noting)
    data = task.open_data()
    assert sorted(asked) == ["", "a", "b a"]
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one).__name__ == "CLIPTextModel"]
    again = pickle.loads(pickle.dumps(data))
    by_row = {task.open_data().entry(i).values[0]: i for i in range(len(data))}  # type: ignore[index]
    for number, text in enumerate(TEXTS, 2):
        i = by_row[float(number)]
        assert torch.allclose(data[i].prompt, told_by(pipeline, text), atol=1e-5)
        assert torch.equal(task.numbers(data.entry(i))["tokens"], data[i].prompt)  # as next to kept latents
        assert torch.equal(again[i].prompt, data[i].prompt)
    monkeypatch.setattr(prompt_texts, "encoder_parts", lambda root: pytest.fail("loaded again"))
    assert torch.equal(task_of(pipeline, tmp_path / "data/rows.csv").open_data()[0].prompt, data[0].prompt)


def test_another_text_or_another_encoder_is_another_embedding(pipeline: Path, tmp_path: Path) -> None:
    path = rows_with(tmp_path / "data", TEXTS)
    before = task_of(pipeline, path).open_data()
    path.write_text(path.read_text().replace(',"a"', ',"b"'))
    after = task_of(pipeline, path).open_data()
    assert before.fingerprint() != after.fingerprint()
    assert not torch.equal(before[0].prompt, after[0].prompt)
    other = make_pipeline(tmp_path / "other", WIDTH, seed=1)
    (other / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": WIDTH}))
    assert not torch.equal(task_of(other, path).open_data()[0].prompt, after[0].prompt)


def test_random_weights_have_random_embeddings_of_seed_and_text(tmp_path: Path) -> None:
    path = rows_with(tmp_path, TEXTS)
    words = ("model.architecture=tiny",)
    data = task_of("random", path, *words).open_data()
    prompts = {tuple(data[i].prompt.flatten().tolist()) for i in range(len(data))}
    assert len(prompts) == 3
    assert torch.equal(data[0].prompt, task_of("random", path, *words).open_data()[0].prompt)
    assert not torch.equal(data[0].prompt, task_of("random", path, *words, "seed=7").open_data()[0].prompt)


def test_what_cannot_be_embedded_is_one_line(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows_with(tmp_path / "data", TEXTS)
    with pytest.raises(UserError, match="column prompt, and embedded-inpainting no text encoder"):
        task_of("embedded-inpainting", path).open_data()
    lonely = tmp_path / "lonely"
    (lonely / "unet").mkdir(parents=True)
    (lonely / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": WIDTH}))
    with pytest.raises(UserError, match="column prompt, and .*lonely no text encoder"):
        task_of(lonely, path).open_data()
    (pipeline / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": 24}))
    with pytest.raises(UserError, match="gives 16 numbers a token, the model's cross-attention takes 24"):
        task_of(pipeline, path).open_data()
    (pipeline / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": WIDTH}))
    long = rows_with(tmp_path / "long", [*TEXTS[:5], "a " * 76])
    with pytest.raises(UserError, match="78 tokens, and the text encoder reads 77; shorten it"):
        task_of(pipeline, long).open_data()
    path.write_text("\n".join([*path.read_text().splitlines()[:1], ""]).replace("prompt", "prompt,prompt_embedding"))
    with pytest.raises(UserError, match="keep the text or its embedding"):
        task_of(pipeline, path).open_data()


@pytest.mark.parametrize("column", ["prompt", "prompt_embedding"])
def test_latents_are_kept_of_rows_with_prompts_and_each_is_told_its_own(tmp_path: Path, column: str) -> None:
    if column == "prompt":
        path = rows_with(tmp_path / "data", TEXTS)
    else:
        path = make_rows(tmp_path / "data")
        first, *rows = path.read_text().splitlines()
        for i in range(len(rows)):
            save_file({"prompt_embedding": torch.randn(3, WIDTH)}, path.parent / f"prompt_{i}.safetensors")
        named = [f"{row},prompt_{i}.safetensors" for i, row in enumerate(rows)]
        path.write_text("\n".join([f"{first},prompt_embedding", *named]))
    words = [f"data.latents={tmp_path / 'latents'}", "model.architecture=tiny", "model.weights=random"]
    options = [part for word in ["data.image_size=32", *words] for part in ("--set", word)]
    command = ["data", "encode", "--preset", "insertion-tiny", "--data", str(path), "--out", str(tmp_path / "latents")]
    done = CliRunner().invoke(app, [*command, "--device", "cpu", *options])
    assert done.exit_code == 0, done.output
    task = task_of("random", path, *words)
    task.load_vae(torch.device("cpu"))
    data = task.open_data()
    config = load_config(
        preset="insertion-tiny",
        assignments=["data.image_size=32", "device=cpu", f"data.path={path}", *words],
    )
    kept = open_source(config, data, task, range(6)).dataset
    assert all(torch.equal(kept[i].numbers["tokens"], data[i].prompt) for i in range(6))
