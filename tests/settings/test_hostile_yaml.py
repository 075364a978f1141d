"""A configuration from elsewhere is one line where it is a trap: it costs neither minutes nor gigabytes."""

import os
import time
from pathlib import Path

import pytest

from shadowlab.errors import UserError
from shadowlab.settings import load_config, load_kept_config, parse_yaml

DOUBLING = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 64))])
BOMBS = {
    "aliases of lists": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "aliases of sections": DOUBLING,
    "merged keys": "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)),
    "aliases of a long text": f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 9000)}]",
    "many values": f"train: [{','.join(['1'] * 100_000)}]",
    "deep lists": "a: " + "[" * 200_000,
    "deep sections": "\n".join(f"{' ' * n}k:" for n in range(300)),
    "an alias that holds itself": "train: &a {max_steps: *a}",
    "an alias that holds itself in a list": "train: &a [[*a]]",
    "a large file": "# " + "x" * 2**19,
    "a number of thousands of digits": f"seed: {'9' * 5000}",
    "a hexadecimal number of thousands of digits": f"seed: 0x{'f' * 5000}",
    "sexagesimal": "seed: 1" + ":59" * 20_000,
    "an object of Python's": "seed: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(BOMBS[name])
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_config(file=file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - began < 5


def test_bases_that_double_are_counted(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"c{n}.yaml").write_text(f"base: [c{n + 1}.yaml, c{n + 1}.yaml]\nseed: {n}\n")
    (tmp_path / "c30.yaml").write_text("seed: 30")
    with pytest.raises(UserError, match="`base` leads to more than 64 files"):
        load_config(file=tmp_path / "c0.yaml")


def test_a_chain_of_bases_has_a_bound(tmp_path: Path) -> None:
    for n in range(1200):
        (tmp_path / f"c{n}.yaml").write_text(f"base: [c{n + 1}.yaml]\n")
    with pytest.raises(UserError, match="more than 64 files"):
        load_config(file=tmp_path / "c0.yaml")


@pytest.mark.parametrize("base", ["/dev/zero", "pipe", ".", "loop", "a\0b", "x" * 300])
def test_a_base_that_is_no_file_is_one_line(tmp_path: Path, base: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    file = tmp_path / "config.yaml"
    file.write_text(f"base: ['{base}']" if "\0" not in base else 'base: ["a\\0b"]')
    with pytest.raises(UserError, match=r"config\.yaml: base"):
        load_config(file=file)


def test_shared_values_that_are_few_are_read(tmp_path: Path) -> None:
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: [*a, 3]") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": [{"x": [1, 2]}, 3],
    }


def test_what_a_run_keeps_leads_to_no_other_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret.yaml").write_text("password: 1234")
    (run / "config.yaml").write_text(f"base: [{tmp_path / 'secret.yaml'}]\nseed: 1")
    with pytest.raises(UserError, match="`base` is not followed here"):
        load_kept_config(run / "config.yaml")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(UserError, match="leads out of"):
        load_kept_config(run / "config.yaml")
