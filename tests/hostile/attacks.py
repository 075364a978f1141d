"""Attacks: each changes something of the guest's folder, as a sender could have."""

import json
import os
import pickle
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.hostile.values import ESCAPES, WRONG, in_every_text, places, replaced, without
from tests.hostile.world import EXTRAS, GUEST, SECRET, World, files_of

INCIDENT = "incidents/step-00000005"
CHECKPOINT = "checkpoints/step-00000003"
LIBRARY = "evil.so"
"""A shared library in the guest's folder; it must never be mapped."""


@dataclass(frozen=True)
class Attack:
    """One change of the guest's folder."""

    kind: str
    file: str
    """That is attacked, by its path in the run; a folder's, too."""
    act: Callable[[World], None]
    detail: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.kind, self.file, self.detail]))


# What stands in place of a file


def _cleared(world: World, file: str) -> Path:
    place = world.guest / file
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif os.path.lexists(place):
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def pipe(world: World, file: str) -> None:
    os.mkfifo(_cleared(world, file))


def socket_(world: World, file: str) -> None:
    place, here = _cleared(world, file), Path.cwd()
    os.chdir(place.parent)  # a socket's name has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name[:100])
    finally:
        os.chdir(here)


def device(world: World, file: str) -> None:
    _cleared(world, file).symlink_to("/dev/zero")


def link_out(world: World, file: str) -> None:
    _cleared(world, file).symlink_to(world.twin(file))


def relative_link_out(world: World, file: str) -> None:
    place = _cleared(world, file)
    place.symlink_to(os.path.relpath(world.twin(file), place.parent))


def link_to_a_text(world: World, file: str) -> None:
    _cleared(world, file).symlink_to(world.outside / "precious" / "file.txt")


def dangling_link(world: World, file: str) -> None:
    _cleared(world, file).symlink_to(world.outside / "made by a command")


def loop(world: World, file: str) -> None:
    place = _cleared(world, file)
    place.symlink_to(place.name)


def folder(world: World, file: str) -> None:
    _cleared(world, file).mkdir()


def link_to_a_folder(world: World, file: str) -> None:
    _cleared(world, file).symlink_to(world.outside / "precious")


def absent(world: World, file: str) -> None:
    _cleared(world, file)


def sparse(world: World, file: str) -> None:
    with _cleared(world, file).open("wb") as opened:
        opened.truncate(5 * 2**30)


def content(world: World, file: str, data: bytes) -> None:
    _cleared(world, file).write_bytes(data)


def cut(world: World, file: str) -> None:
    data = (world.guest / file).read_bytes()
    content(world, file, data[: len(data) // 2])


IN_PLACE: dict[str, Callable[[World, str], None]] = {
    "pipe": pipe,
    "socket": socket_,
    "device": device,
    "link out": link_out,
    "relative link out": relative_link_out,
    "link to a text": link_to_a_text,
    "dangling link": dangling_link,
    "loop": loop,
    "folder": folder,
    "link to a folder": link_to_a_folder,
    "absent": absent,
    "sparse": sparse,
    "cut": cut,
    "empty": partial(content, data=b""),
    "deep brackets": partial(content, data=b"[" * 200_000),
    "deep objects": partial(content, data=b'{"a":' * 100_000),
    "no text": partial(content, data=b"\xff\xfe\x00\xd8" * 100),
    "zeros": partial(content, data=b"\0" * 100_000),
    "escapes": partial(content, data=ESCAPES.encode()),
    "null": partial(content, data=b"null"),
    "list": partial(content, data=b"[1, 2, 3]"),
    "number": partial(content, data=b"1" + b"0" * 5000),
    "infinite": partial(content, data=b'{"step": 1e999, "kind": NaN}'),
}


def in_place() -> Iterator[Attack]:
    """Every file of the run, exchanged for something else."""
    for file in GUEST_FILES:
        for kind, act in IN_PLACE.items():
            yield Attack(kind, file, partial(act, file=file))


# Folders, and names that a command will write to

FOLDERS = (
    *(
        "samples",
        "incidents",
        "reports",
        "tensorboard",
        "checkpoints",
        "tensorboard-rebuilt",
        "tensorboard-rebuilt.tmp",
    ),
    *(CHECKPOINT, f"{CHECKPOINT}/unet", f"{CHECKPOINT}/ema", INCIDENT, f"{INCIDENT}/state"),
    *(
        "checkpoints/step-00000004",
        "checkpoints/step-00000002",
        "checkpoints/.step-00000004.partial",
        "incidents/step-00000007",
    ),
    *(f"{INCIDENT}/state/step-00000004", "."),
)
WRITTEN = (
    *("log.txt", ".lock", "config.tmp", "stages.tmp", "metrics.jsonl.tmp", ".config.yaml.tmp", "required-stages.tmp"),
    *("reports/report.html", "reports/.report.html.tmp", "samples/step-00000004.png", "index.json", "metrics.index"),
    *("checkpoints/step-00000004/COMPLETE", "checkpoints/.step-00000004.partial/state.json", f"{INCIDENT}/why.json"),
    *("reports/precision.json", f"{INCIDENT}/.why.json.tmp"),
)


def _folder_link(world: World, file: str, target: str) -> None:
    goal = {"out": world.twin(file) if world.twin(file).is_dir() else world.outside / "precious", "up": world.user}
    goal |= {"root": Path("/"), "loop": world.guest, "precious": world.outside / "precious"}
    if file != ".":
        _cleared(world, file).symlink_to(goal[target])
        return
    shutil.rmtree(world.guest)
    world.guest.symlink_to(world.guest if target == "loop" else goal[target])


def links_of_folders() -> Iterator[Attack]:
    for file in FOLDERS:
        for target in ("up", "loop") if file == "." else ("out", "up", "loop", "precious"):  # it may lead to a run
            yield Attack(f"folder leads {target}", file, partial(_folder_link, file=file, target=target))
    for file in WRITTEN:
        for kind in ("pipe", "device", "link to a text", "dangling link", "folder", "link to a folder"):
            yield Attack(kind, file, partial(IN_PLACE[kind], file=file), "(written)")


# Documents with wrong values


def _json_of(file: str) -> Any:
    return json.loads(_good(file))


def _good(file: str) -> str:
    return EXTRAS.get(file) or (GOOD_GUEST / file).read_text()


def _write_json(world: World, file: str, document: Any) -> None:
    content(world, file, json.dumps(document).encode())


def wrong_values() -> Iterator[Attack]:
    """Every value of every JSON document, in turn replaced by every wrong one, and left out."""
    for file in GUEST_FILES:
        if file.endswith((".json", "COMPLETE")):
            document = _json_of(file)
            for path in places(document):
                shown = "/".join(map(str, path)) or "all"
                for kind, value in WRONG.items():
                    act = partial(_write_json, file=file, document=replaced(document, path, value))
                    yield Attack("wrong value", file, act, f"{shown} = {kind}")
                if path:
                    act = partial(_write_json, file=file, document=without(document, path))
                    yield Attack("wrong value", file, act, f"{shown} left out")
            escaped = in_every_text(document, lambda text: text + ESCAPES)
            yield Attack("escapes in every text", file, partial(_write_json, file=file, document=escaped))


def wrong_records() -> Iterator[Attack]:
    """Every value of one record of each kind, replaced likewise; the other records stay."""
    lines = _good("metrics.jsonl").splitlines()
    seen = set()
    for number, line in enumerate(lines):
        record = json.loads(line)
        shape = (record.get("kind"), "layers" in record)
        if shape in seen:
            continue
        seen.add(shape)
        for path in places(_slim(record)):
            for kind, value in WRONG.items():
                changed = [*lines[:number], json.dumps(replaced(_slim(record), path, value)), *lines[number + 1 :]]
                act = partial(content, file="metrics.jsonl", data="\n".join([*changed, ""]).encode())
                detail = f"{record.get('kind')} {'/'.join(map(str, path)) or 'all'} = {kind}"
                yield Attack("wrong record", "metrics.jsonl", act, detail)
    escaped = [json.dumps(in_every_text(json.loads(line), _unless_word)) for line in lines]
    act = partial(content, file="metrics.jsonl", data="\n".join([*escaped, ""]).encode())
    yield Attack("escapes in every text", "metrics.jsonl", act)


_WORDS = {
    "kind",
    "step",
    "header",
    "train",
    "incident",
    "stage",
    "health",
    "layers",
    "parameters",
    "loss",
    "activation",
}


def _unless_word(text: str) -> str:
    return text if text in _WORDS or text.isidentifier() else text + ESCAPES


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """With two layers and two parameters of the many."""
    slim = dict(record)
    for key in ("layers", "parameters", "histograms", "charts"):
        if isinstance(slim.get(key), dict):
            slim[key] = dict(list(slim[key].items())[:2])
    return slim


def wrong_settings() -> Iterator[Attack]:
    """Every key of the configurations that a run keeps."""
    for file in ("config.yaml", f"{INCIDENT}/config.yaml"):
        lines = _good(file).splitlines()
        for number, line in enumerate(lines):
            key = line.partition(":")[0]
            values = ["null", "[]", "{}", "-1", ".inf", ".nan", "1e400", "text", "9" * 90, "true", "/etc/passwd"]
            values += [
                "owner/model",
                "https://example.com/x",
                json.dumps(ESCAPES),
                "!!python/object/apply:os.system [true]",
            ]
            for value in values if line.strip() else []:
                changed = "\n".join([*lines[:number], f"{key}: {value}", *lines[number + 1 :], ""])
                yield Attack(
                    "wrong setting", file, partial(content, file=file, data=changed.encode()), f"{key}={value[:30]}"
                )
        for more in (
            f"base: [{GUEST / 'stages.json'}]",
            "base: [/etc/passwd]",
            "base: [tiny]",
            "strange: 1",
            "<<: {a: 1}",
        ):
            act = partial(content, file=file, data=f"{more}\n{_good(file)}".encode())
            yield Attack("wrong setting", file, act, more)
        bomb = "\n".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(30))
        yield Attack("alias bomb", file, partial(content, file=file, data=bomb.encode()))


# Evidence, weights, checkpoints


class Payload:
    """Unpickled without care, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.canary}'",))


def _operator(world: World, name: Any, *args: Any, **kwargs: Any) -> None:
    shutil.copyfile(Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so", world.guest / LIBRARY)
    args = tuple(str(world.guest / LIBRARY) if arg == "LIBRARY" else arg for arg in args)
    args = tuple(str(world.canary) if arg == "CANARY" else arg for arg in args)
    call = {"operator": name, "args": list(args), "kwargs": kwargs, "num_threads": 1}
    torch.save(call, _cleared(world, f"{INCIDENT}/operator.pt"))


def _pickled(world: World, file: str, by_torch: bool) -> None:
    place = _cleared(world, file)
    if by_torch:
        torch.save({"operator": "aten.log.default", "args": [Payload(world.canary)], "kwargs": {}}, place)
    else:
        place.write_bytes(pickle.dumps(Payload(world.canary)))


def evidence() -> Iterator[Attack]:
    x, huge = torch.zeros(2), torch.zeros(1).expand(2**40)
    calls: list[tuple[Any, ...]] = [
        ("load_library", "LIBRARY"),
        ("ops.load_library", "LIBRARY"),
        ("aten.from_file.default", "CANARY", True, 4),
        ("aten.save.default", x, "CANARY"),
        ("aten.log.default", huge),
        ("aten.full.default", [2**40], 1.0),
        ("aten.log.default", "CANARY"),
        ("aten.zeros_like.default", x),
        ("__class__.__base__.__subclasses__",),
        (ESCAPES, x),
        (None, x),
    ]
    for name, *args in calls:
        yield Attack("operator", f"{INCIDENT}/operator.pt", partial(_call, name, args), ascii(name)[:40])
    for file in ("operator.pt", "batch.pt", "randomness.pt"):
        for by_torch in (True, False):
            act = partial(_pickled, file=f"{INCIDENT}/{file}", by_torch=by_torch)
            yield Attack("pickle", f"{INCIDENT}/{file}", act, "in torch's file" if by_torch else "alone")
    good = {"ids": ["a"], "positions": torch.tensor([0]), "data": torch.zeros(1, 4, 4, 4)}
    batches: dict[str, Any] = {
        "expanded": {**good, "data": torch.zeros(1).expand(2**20, 4, 2**10, 2**10)},
        "expanded conditions": {**good, "concatenated": torch.zeros(1).expand(1, 2**20, 2**20, 4)},
        "no shape": {**good, "data": torch.zeros(())},
        "whole numbers": {**good, "data": torch.zeros(1, 4, 4, 4, dtype=torch.int8)},
        "many ids": {**good, "ids": ["a"] * 1000},
        "ids of escapes": {**good, "ids": [ESCAPES]},
        "ids of numbers": {**good, "ids": [3]},
        "huge positions": {**good, "positions": torch.tensor([2**62])},
        "negative positions": {**good, "positions": torch.tensor([-5])},
        "positions that are floats": {**good, "positions": torch.tensor([0.5])},
        "unknown key": {**good, ESCAPES: torch.zeros(1)},
        "empty": [],
        "empty batch": {"ids": [], "positions": torch.zeros(0, dtype=torch.int64), "data": torch.zeros(0, 4, 4, 4)},
        "nested": [[[good]]],
        "sparse": {**good, "data": torch.zeros(1, 4, 4, 4).to_sparse()},
        "complex": {**good, "data": torch.zeros(1, 4, 4, 4, dtype=torch.complex64)},
        "no mapping": 7,
        "a bytearray": bytearray(10),
    }
    for name, batch in batches.items():
        yield Attack("batch", f"{INCIDENT}/batch.pt", partial(_saved, f"{INCIDENT}/batch.pt", batch), name)
    yield Attack("packed evidence", f"{INCIDENT}/batch.pt", _packed)


def _call(name: Any, args: list[Any], world: World) -> None:
    _operator(world, name, *args)


def _saved(file: str, value: Any, world: World) -> None:
    torch.save(value, _cleared(world, file))


def _packed(world: World) -> None:
    """A part that unpacks to a thousand times its length."""
    import zipfile

    place = _cleared(world, f"{INCIDENT}/batch.pt")
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("batch/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("batch/data/0", b"\0" * 2**28)


def _header(world: World, file: str, header: bytes, body: bytes = b"") -> None:
    content(world, file, struct.pack("<Q", len(header)) + header + body)


def weights() -> Iterator[Attack]:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    headers: dict[str, bytes] = {
        "offsets beyond the file": json.dumps({"a": entry}).encode(),
        "offsets that go back": json.dumps({"a": {**entry, "data_offsets": [8, 0]}}).encode(),
        "negative shape": json.dumps({"a": {**entry, "shape": [-1]}}).encode(),
        "strange dtype": json.dumps({"a": {**entry, "dtype": "os.system"}}).encode(),
        "deep": b"[" * 200_000,
        "names of escapes": json.dumps({ESCAPES: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode(),
    }
    for file in (file for file in GUEST_FILES if file.endswith(".safetensors")):
        for name, header in headers.items():
            yield Attack("safetensors", file, partial(_header, file=file, header=header, body=b"\0" * 4), name)
        length = struct.pack("<Q", 2**63)
        yield Attack("safetensors", file, partial(content, file=file, data=length + b"{}"), "a huge header")


def checkpoints() -> Iterator[Attack]:
    """Markers that list files elsewhere, and folders that look like checkpoints."""
    for place in (CHECKPOINT, f"{INCIDENT}/state/step-00000004"):
        good = _json_of(f"{place}/COMPLETE")
        entry = {"bytes": len(f"{SECRET}\n"), "sha256": "0" * 64}
        for name in ("../../../../outside/precious/file.txt", "/etc/passwd", "..", "", "a" * 5000, "pipe\0x", ESCAPES):
            act = partial(_write_json, file=f"{place}/COMPLETE", document={**good, name: entry})
            yield Attack("marker", f"{place}/COMPLETE", act, ascii(name)[:40])
    for name in (
        "step-99999999",
        "step-00000003-copy",
        "step-",
        "step-x",
        f"step-{'9' * 100}",
        "step-²",
        "step-00000004\nx",
    ):
        yield Attack("strange checkpoint", f"checkpoints/{name}", partial(_copied, CHECKPOINT, f"checkpoints/{name}"))
    for name in (
        "step-99999999",
        "step-x",
        "step-",
        f"step-{'9' * 100}",
        "step-00000006\x1b[31m[red]",
        "step-²",
        "step--1",
    ):
        yield Attack("strange incident", f"incidents/{name}", partial(_copied, INCIDENT, f"incidents/{name}"))
    for name in ("step-99999999999999999999.png", "x\x1b[31m.png", "<script>.png", "step-00000001\n.png", "[red].png"):
        yield Attack(
            "strange picture", f"samples/{name}", partial(_copied, "samples/step-00000003.png", f"samples/{name}")
        )
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"\x08\x02\0\0\0" + b"\0" * 40
    yield Attack("picture", "samples/step-00000003.png", partial(content, file="samples/step-00000003.png", data=bomb))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    yield Attack(
        "picture", "samples/step-00000003.png", partial(content, file="samples/step-00000003.png", data=eps), "eps"
    )


def _copied(source: str, target: str, world: World) -> None:
    goal = _cleared(world, target)
    (shutil.copytree if (world.guest / source).is_dir() else shutil.copyfile)(world.guest / source, goal)


# What a verdict and a configuration point to


def pointers() -> Iterator[Attack]:
    file = f"{INCIDENT}/verdict.json"
    sources = [
        "/etc/passwd:1",
        "{outside}/precious/file.txt:1",
        "{outside}/twin/repro.py:1",
        "../outside/precious/file.txt:1",
    ]
    sources += [
        "/dev/zero:1",
        "/proc/self/environ:1",
        "{user}/.ssh/id_rsa:1",
        "{user}/link.py:1",
        "os.py:1",
        "{user}/pipe.py:1",
    ]
    for source in sources:
        yield Attack("verdict's source", file, partial(_pointing, source=source), source)
        both = partial(_pointing, source=source, keeps=True)
        yield Attack("verdict's source", file, both, f"{source} in source.json, too")
    for key in ("path", "latents"):
        for place in ("{outside}/precious", "{outside}/twin", "/dev", "{user}/pipe.py", "{user}/endless.tar"):
            for config in ("config.yaml", f"{INCIDENT}/config.yaml"):
                yield Attack("setting leads out", config, partial(_setting, config, key, place), f"{key}={place}")
    for key in ("weights", "vae"):
        for place in (
            "{outside}/precious",
            "{outside}/twin",
            "owner/model",
            "{user}/vae-0",
            "{user}/pipe.py",
            "{user}/unet-eval",
        ):
            for config in ("config.yaml", f"{INCIDENT}/config.yaml"):
                yield Attack("setting leads out", config, partial(_setting, config, key, place), f"{key}={place}")


def _furnish(world: World) -> None:
    """Traps in the user's folder that only a pointer from the run leads to."""
    (world.user / ".ssh").mkdir()
    (world.user / ".ssh" / "id_rsa").write_text(f"{SECRET}\n")
    (world.user / "link.py").symlink_to(world.outside / "precious" / "file.txt")
    os.mkfifo(world.user / "pipe.py")
    with (world.user / "endless.tar").open("wb") as file:
        file.truncate(5 * 2**30)
    for name, change in {
        "vae-0": {"norm_num_groups": 0},
        "unet-eval": {"act_fn": "__import__('os').system('x')"},
    }.items():
        shutil.copytree(GOOD_GUEST / CHECKPOINT / "unet", world.user / name)
        document = _json_of(f"{CHECKPOINT}/unet/config.json") | change
        (world.user / name / "config.json").write_text(json.dumps(document))


def _pointing(world: World, source: str, keeps: bool = False) -> None:
    _furnish(world)
    source = source.format(outside=world.outside, user=world.user)
    _write_json(world, f"{INCIDENT}/verdict.json", _json_of(f"{INCIDENT}/verdict.json") | {"source": source})
    if keeps:
        excerpt = _json_of(f"{INCIDENT}/source.json") | {"file": source.rpartition(":")[0], "line": 1, "first": 1}
        _write_json(world, f"{INCIDENT}/source.json", excerpt)
    else:
        _cleared(world, f"{INCIDENT}/source.json")


def _setting(file: str, key: str, place: str, world: World) -> None:
    _furnish(world)
    place = place.format(outside=world.outside, user=world.user)
    lines = [f"  {key}: {place}" if line.startswith(f"  {key}:") else line for line in _good(file).splitlines()]
    content(world, file, "\n".join([*lines, ""]).encode())


def all_attacks() -> list[Attack]:
    """Every attack, in an order that does not change."""
    makers = (in_place, links_of_folders, wrong_values, wrong_records, wrong_settings, evidence, weights, checkpoints)
    return [attack for maker in (*makers, pointers) for attack in maker()]


GOOD_GUEST = Path(__file__).parents[1] / "old_runs" / "folder" / "runs" / "fallen"
GUEST_FILES = [
    *files_of(GOOD_GUEST),
    *EXTRAS,
    *("samples/step-00000003.png", "samples/light-sweep-step-00000003.png"),
]
