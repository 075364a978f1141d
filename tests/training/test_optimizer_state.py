"""States of any optimizer in a checkpoint: bit for bit what they were, or a refusal that says what does not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diagnostics.watching import Watch
from shadowlab.errors import StageFailedError, UserError
from shadowlab.runs import RunFolder
from shadowlab.training import state as state_module
from shadowlab.training.capture import capture_step, captured_state, restore_bad_tensors
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.checkpoint_files import _dense
from shadowlab.training.state_tree import TreeReader, TreeWriter
from shadowlab.training.step import StepPlace
from shadowlab.training.trainee import Trainee
from tests import tiny
from tests.training.optimizers import (
    Adam8bit,
    Make,
    Momentum8bit,
    Nested,
    Quantised,
    alike,
    quantisation_map,
    quantised,
    state_of,
    take_gradient_steps,
)
from tests.training.test_step import take_step


def save(folder: Path, trainee: Trainee, step: int = 3) -> Path:
    return save_checkpoint(folder, trainee, step=step, position=0, identity={}, keep_last=3)


def trainee_with(hub_folder: Path, make: Make, *, trains: Callable[[str], bool] = lambda name: True) -> Trainee:
    """A trainee with another optimizer; `trains` says which parameters it has."""
    trainee = tiny.trainee_of(hub_folder, "train.ema_decay=null", trains=trains)
    trainee.watch.detach()
    optimizer: Any = make(list(trainee.parameters().values()))
    return replace(trainee, optimizer=optimizer, watch=Watch(trainee.unet, optimizer, incidents=None))


def small(hub_folder: Path, make: Make) -> Trainee:
    """A trainee of a few parameters."""
    return trainee_with(hub_folder, make, trains=lambda name: name.startswith(("conv_in", "conv_out")))


def weights(trainee: Trainee) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainee.unet.parameters()]


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "AdamW groups": lambda p: torch.optim.AdamW([{"params": p[::2]}, {"params": p[1::2], "weight_decay": 0.0}]),
    "AdamW capturable lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), foreach=False),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "ASGD": lambda p: torch.optim.ASGD(p, t0=2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4, line_search_fn="strong_wolfe"),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "RMSprop centered": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "Adam8bit": Adam8bit,
    "Momentum8bit": Momentum8bit,
    "Nested": Nested,
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = torch.optim.Muon


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bit_for_bit(hub_folder: Path, tmp_path: Path, name: str) -> None:
    part = (lambda one: one.endswith("to_q.weight")) if name == "Muon" else (lambda one: True)  # Muon takes matrices
    trainee = trainee_with(hub_folder, OPTIMIZERS[name], trains=part)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(3))
    path = save(tmp_path, trainee)
    again = trainee_with(hub_folder, OPTIMIZERS[name], trains=part)
    load_checkpoint(path, again)
    assert alike(state_of(again.optimizer), state_of(trainee.optimizer))
    assert all(parameter.grad is None for parameter in again.unet.parameters())
    for one in (trainee, again):
        take_gradient_steps(one.optimizer, one.parameters(), range(3, 6))
    assert alike(weights(again), weights(trainee))
    assert alike(state_of(again.optimizer), state_of(trainee.optimizer))
    files = {file.name for file in path.iterdir()} - {"unet"}
    assert files == {"COMPLETE", "state.json", "optimizer.safetensors"} | (
        set() if name in ("AdamW amsgrad", "AdamW capturable lr") else {"optimizer.json"}
    )


@pytest.mark.parametrize("make", [Adam8bit, Momentum8bit])
def test_the_watched_step_resumes_bit_for_bit_with_8_bit_states(hub_folder: Path, tmp_path: Path, make: Make) -> None:
    """3 + 3 steps are 6."""
    whole, first, second = (trainee_with(hub_folder, make) for _ in range(3))
    outcomes = [take_step(whole, step) for step in range(6)]
    for step in range(3):
        take_step(first, step)
    load_checkpoint(save(tmp_path, first), second)
    assert [take_step(second, step) for step in range(3, 6)] == outcomes[3:]
    assert alike(weights(second), weights(whole))
    assert alike(state_of(second.optimizer), state_of(whole.optimizer))


def test_one_map_of_all_states_is_saved_once_and_stays_one(hub_folder: Path, tmp_path: Path) -> None:
    trainee = trainee_with(hub_folder, Adam8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(1))
    path = save(tmp_path, trainee)
    saved = load_file(path / "optimizer.safetensors")
    assert len([name for name in saved if "qmap" in name]) == 1
    again = trainee_with(hub_folder, Adam8bit)
    load_checkpoint(path, again)
    assert len({s["qmap1"].data_ptr() for s in again.optimizer.state.values() if "qmap1" in s}) == 1


def test_views_of_one_buffer_are_saved_apart(hub_folder: Path, tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory."""
    trainee = trainee_with(hub_folder, lambda p: torch.optim.SGD(p, momentum=0.9))
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(1))
    buffer = torch.arange(100.0)
    for offset, state in enumerate(trainee.optimizer.state.values()):
        state["window"] = buffer[offset % 7 : offset % 7 + 20]
    again = trainee_with(hub_folder, lambda p: torch.optim.SGD(p, momentum=0.9))
    load_checkpoint(save(tmp_path, trainee), again)
    assert alike(state_of(again.optimizer), state_of(trainee.optimizer))


def test_the_usual_optimizer_has_the_usual_file(hub_folder: Path, tmp_path: Path) -> None:
    """Byte for byte what was written before other optimizers could be."""
    trainee = tiny.trainee_of(hub_folder)
    for step in range(2):
        take_step(trainee, step)
    path = save(tmp_path, trainee, 2)
    assert sorted(file.name for file in path.iterdir()) == [
        "COMPLETE",
        "ema",
        "optimizer.safetensors",
        "state.json",
        "unet",
    ]
    expected = {
        f"{name}/{key}": value
        for name, parameter in trainee.parameters().items()
        for key, value in trainee.optimizer.state[parameter].items()
    }
    save_file(expected, tmp_path / "expected")
    assert (path / "optimizer.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()
    assert list(json.loads((path / "state.json").read_text())) == [
        *("step", "position", "seed", "identity", "processes", "strategy", "ema_updates", "scaler", "skips")
    ]


def test_a_state_of_before_the_first_step_is_empty(hub_folder: Path, tmp_path: Path) -> None:
    for step, total in ((0, 0), (2, 2)):  # at step 2 the scaler has skipped both
        trainee = tiny.trainee_of(hub_folder, "precision=fp16")
        trainee.watch.num_skipped = total
        again = tiny.trainee_of(hub_folder, "precision=fp16")
        load_checkpoint(save(tmp_path, trainee, step), again)
        assert not again.optimizer.state


def test_a_parameter_that_no_step_reached_has_no_state_again(hub_folder: Path, tmp_path: Path) -> None:
    trainee = tiny.trainee_of(hub_folder, "train.ema_decay=null")
    reached = dict(list(trainee.parameters().items())[:-2])
    take_gradient_steps(trainee.optimizer, reached, range(2))
    path = save(tmp_path, trainee)
    assert len(json.loads((path / "optimizer.json").read_text())["without_state"]) == 2
    again = tiny.trainee_of(hub_folder, "train.ema_decay=null")
    load_checkpoint(path, again)
    assert alike(state_of(again.optimizer), state_of(trainee.optimizer))


# --- refusals ----------------------------------------------------------------------------------------------------


def without(*keys: str) -> Callable[[Path], None]:
    """Take tensors out of optimizer.safetensors."""

    def damage(path: Path) -> None:
        saved = load_file(path / "optimizer.safetensors")
        gone = [name for name in saved if any(name.startswith(key) or name.endswith(key) for key in keys)]
        assert gone
        save_file({name: t for name, t in saved.items() if name not in gone}, path / "optimizer.safetensors")

    return damage


def changed(**tensors: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Exchange the tensors of optimizer.safetensors whose names end so."""

    def damage(path: Path) -> None:
        saved = load_file(path / "optimizer.safetensors")
        for end, change in tensors.items():
            saved |= {name: change(t) for name, t in saved.items() if name.endswith(f"/{end}")}
        save_file(saved, path / "optimizer.safetensors")

    return damage


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change optimizer.json in place."""

    def damage(path: Path) -> None:
        document = json.loads((path / "optimizer.json").read_text())
        change(document)
        (path / "optimizer.json").write_text(json.dumps(document))

    return damage


def first_tree(document: dict[str, Any]) -> dict[str, Any]:
    return next(iter(document["state"].values()))["dict"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without("conv_in.weight/exp_avg_sq"), r"conv_in\.weight/exp_avg_sq is missing, the optimizer has it"),
        (without("conv_in.weight/"), r"has no state of conv_in\.weight, which is trained"),
        (without(""), r"has no state of conv_in\.weight, which is trained"),
        (
            changed(exp_avg=lambda t: t.flatten()[:1]),
            r"conv_in\.weight/exp_avg is \(1,\) float32, the optimizer has \(8, 9",
        ),
        (
            changed(exp_avg=lambda t: t.double()),
            r"conv_in\.weight/exp_avg is \(8, 9, 3, 3\) float64, the optimizer has .*float32",
        ),
        (
            changed(step=lambda t: t.to(torch.int64)),
            r"conv_in\.weight/step is \(\) int64, the optimizer has \(\) float32",
        ),
    ],
)
def test_a_usual_state_that_is_not_whole_or_does_not_fit_is_refused(
    hub_folder: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    trainee = small(hub_folder, torch.optim.AdamW)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(3))
    path = save(tmp_path, trainee)
    damage(path)
    with pytest.raises(UserError, match=rf"optimizer\.safetensors: {says}.*; resume with .* or start anew") as caught:
        load_checkpoint(path, small(hub_folder, torch.optim.AdamW))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (rewritten(lambda d: first_tree(d).pop("step")), r"conv_in\.weight/step is missing, the optimizer has it"),
        (
            rewritten(lambda d: first_tree(d).update(step={"tuple": []})),
            r"conv_in\.weight/step has 0 elements, the optimizer has 1",
        ),
        (rewritten(lambda d: first_tree(d).update(state1=3)), r"conv_in\.weight/state1 is 3, the optimizer has \(8, 9"),
        (
            rewritten(lambda d: first_tree(d).update(state1={"dict": {}})),
            r"conv_in\.weight/state1 is a dictionary, the opt",
        ),
        (changed(state1=lambda t: t[:1]), r"conv_in\.weight/state1 is \(1, 9, 3, 3\) uint8, the optimizer has \(8, 9"),
        (
            changed(state1=lambda t: t.to(torch.int8)),
            r"conv_in\.weight/state1 is \(8, 9, 3, 3\) int8, the optimizer has",
        ),
        (changed(absmax1=lambda t: t[:2]), r"conv_in\.weight/absmax1 is \(2,\) float32, the optimizer has \(11,\)"),
        (rewritten(lambda d: d.update(optimizer="Lion8bit")), "the state of Lion8bit, the run has Adam8bit"),
        (rewritten(lambda d: d["groups"].append(d["groups"][0])), "2 parameter groups, the optimizer has 1"),
        (
            rewritten(lambda d: d["groups"][0]["parameters"].pop(0)),
            r"group 0 .*conv_in\.weight is in one of them alone",
        ),
        (rewritten(lambda d: d["groups"][0]["parameters"].reverse()), "group 0 has .*: the order is another"),
        (rewritten(lambda d: d["groups"][0]["options"].pop("k")), r"param_groups/0/k is missing, the optimizer has it"),
    ],
)
def test_another_state_that_does_not_fit_is_refused(
    hub_folder: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    trainee = small(hub_folder, Adam8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(3))
    path = save(tmp_path, trainee)
    damage(path)
    with pytest.raises(UserError, match=rf"optimizer\.json: {says}.*; resume with .* or start anew") as caught:
        load_checkpoint(path, small(hub_folder, Adam8bit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        rewritten(lambda d: d.pop("state")),
        rewritten(lambda d: d.update(groups=[3])),
        rewritten(lambda d: d.update(groups=[{"parameters": [[]], "options": {}}])),
        rewritten(lambda d: d["state"].popitem()),
        rewritten(lambda d: first_tree(d).update(step={"code": "import os"})),
        rewritten(lambda d: first_tree(d).update(state1={"tensor": "none/state1"})),
        rewritten(lambda d: first_tree(d).update(step={"pairs": [[[], 1]]})),
        without("conv_in.weight/state1"),
        lambda path: (path / "optimizer.json").write_text("[]"),
        lambda path: (path / "optimizer.json").write_text("{"),
    ],
)
def test_a_damaged_document_is_named_as_such(hub_folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    trainee = small(hub_folder, Adam8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(1))
    path = save(tmp_path, trainee)
    damage(path)
    with pytest.raises(UserError, match="damaged checkpoint.*remove it to use the one before"):
        load_checkpoint(path, small(hub_folder, Adam8bit))


def test_a_class_is_never_taken_from_a_file(hub_folder: Path, tmp_path: Path) -> None:
    trainee = small(hub_folder, Momentum8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(1))
    path = save(tmp_path, trainee)
    for change, says in (
        ({"subclass": "Parameter"}, r"momentum is a Parameter, the optimizer has Quantised \(8, 9, 3, 3\) float32"),
        ({"subclass": "Quantised", "parts": {"codes": 3}}, r"momentum is made of codes, the optimizer has Quantised"),
    ):
        rewritten(lambda d, change=change: first_tree(d)["momentum"].update(change))(path)
        with pytest.raises(UserError, match=says):
            load_checkpoint(path, small(hub_folder, Momentum8bit))


@pytest.mark.parametrize(
    ("then", "now"), [("AdamW groups", "SGD"), ("SGD momentum", "AdamW groups"), ("Adam8bit", "SGD")]
)
def test_another_optimizer_is_refused(hub_folder: Path, tmp_path: Path, then: str, now: str) -> None:
    trainee = small(hub_folder, OPTIMIZERS[then])
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(2))
    with pytest.raises(UserError, match=f"the state of {then.split()[0]}, the run has {now.split()[0]}"):
        load_checkpoint(save(tmp_path, trainee), small(hub_folder, OPTIMIZERS[now]))


def test_the_usual_state_is_no_other_optimizers(hub_folder: Path, tmp_path: Path) -> None:
    trainee = small(hub_folder, torch.optim.AdamW)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(2))
    path = save(tmp_path, trainee)
    with pytest.raises(UserError, match="the state of AdamW, the run has Adam8bit"):
        load_checkpoint(path, small(hub_folder, Adam8bit))
    with pytest.raises(UserError, match=r"conv_in\.\w+/max_exp_avg_sq is missing"):
        load_checkpoint(path, small(hub_folder, OPTIMIZERS["AdamW amsgrad"]))
    trainee = small(hub_folder, OPTIMIZERS["AdamW amsgrad"])
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(2))
    with pytest.raises(UserError, match=r"conv_in\.\w+/max_exp_avg_sq is unknown to the optimizer"):
        load_checkpoint(save(tmp_path, trainee), small(hub_folder, torch.optim.AdamW))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "a object"),
        ({1, 2}, "a set"),
        ([torch.eye(2).to_sparse()], "a sparse_coo float32 tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "a strided complex128 tensor"),
    ],
)
def test_what_no_file_can_hold_is_said_before_anything_is_written(
    hub_folder: Path, tmp_path: Path, value: Any, kind: str
) -> None:
    trainee = small(hub_folder, torch.optim.SGD)
    trainee.optimizer.state[trainee.unet.conv_in.weight]["odd"] = value
    with pytest.raises(
        UserError, match=rf"optimizer state conv_in\.weight/odd\S* is {kind}, which a checkpoint cannot hold"
    ):
        save(tmp_path, trainee)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda o, p: o.state[p]["momentum"].largest.fill_(float("inf")), r"conv_in\.weight/momentum/largest"),
        (lambda o, p: o.state[p].update(d=float("nan")), r"conv_in\.weight/d"),
        (lambda o, p: o.param_groups[0].update(d=torch.tensor(float("nan"))), r"param_groups/0/d"),
    ],
)
def test_nothing_bad_is_written(hub_folder: Path, tmp_path: Path, spoil: Callable[[Any, Any], None], says: str) -> None:
    trainee = small(hub_folder, Momentum8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(1))
    spoil(trainee.optimizer, trainee.unet.conv_in.weight)
    with pytest.raises(StageFailedError, match=rf"optimizer state {says} is not finite"):
        save(tmp_path, trainee)


def test_what_differs_between_processes_is_not_taken_for_whole() -> None:
    class Two:
        def gather(self, items: list[Any]) -> list[Any]:
            return [*items, {**items[0], "a/absmax1": "another"}]

    same = {"a/qmap1": torch.zeros(4)}
    with pytest.raises(UserError, match=r"a/absmax1 is another in each process.*distributed\.strategy=ddp") as caught:
        state_module._require_same(Two(), same | {"a/absmax1": torch.zeros(3)})  # type: ignore[arg-type]
    assert caught.value.shared


def test_an_incident_keeps_bad_elements_of_any_state_apart(hub_folder: Path, tmp_path: Path) -> None:
    """The checkpoint in it is finite; what was not finite can be put back."""
    trainee = small(hub_folder, Momentum8bit)
    take_gradient_steps(trainee.optimizer, trainee.parameters(), range(2))
    trainee.optimizer.state[trainee.unet.conv_in.weight]["momentum"].largest[3] = float("inf")
    before = state_of(trainee.optimizer)
    run = RunFolder.create(tiny.config_of(hub_folder, f"output_dir={tmp_path}"), "run")
    incident = tmp_path / "incident"
    incident.mkdir()
    note = capture_step(incident, run, trainee, StepPlace(2, 4, 2), kind="train")
    assert note == "kept; not finite in it: optimizer state conv_in.weight/momentum/largest"
    assert alike(state_of(trainee.optimizer), before)

    again, kept = small(hub_folder, Momentum8bit), captured_state(incident)
    assert kept is not None
    load_checkpoint(kept, again)
    assert again.optimizer.state[again.unet.conv_in.weight]["momentum"].largest[3] == 0.0
    restore_bad_tensors(incident, again)
    assert alike(state_of(again.optimizer), before)


# --- properties --------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int64, torch.bool]


def made_tensor(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(seed))
    if dtype is torch.bool:
        return values[..., 0] > 127
    return values.to(torch.uint8).view(dtype)[..., 0]  # any bits, NaN among them


def made_state(codes: Tensor) -> Quantised:
    return Quantised(*quantised(codes, quantisation_map()), quantisation_map(), signed=True)


tensors = st.builds(made_tensor, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES), st.integers(0, 99))
composed = st.builds(made_state, st.sampled_from([torch.ones(3), torch.zeros(0, 2), torch.linspace(-3, 5, 70)]))
keys = st.text(max_size=4) | st.integers(-2, 9) | st.none() | st.booleans()
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | tensors
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def written(value: Any, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Tree and tensors as they come back from the disk."""
    writer = TreeWriter()
    tree = json.loads(json.dumps(writer.write(value, "p", torch.device("cpu")), allow_nan=False))
    save_file(_dense(writer.tensors), folder / "file")
    return tree, load_file(folder / "file")


@settings(max_examples=200)
@given(value=nested)
def test_any_nested_value_comes_back_with_and_without_what_the_optimizer_has(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    tree, saved = written(value, tmp_path_factory.getbasetemp())
    for live in ({}, {"live": zeros_of(value)}):
        reader = TreeReader(saved, Path("file"))
        found = reader.read(tree, "p", torch.device("cpu"), **live)
        assert alike(found, value), (found, value)
        assert not reader.unread()


@given(value=st.dictionaries(st.text(max_size=3), composed | tensors | st.lists(composed, max_size=2), max_size=3))
def test_tensors_made_of_tensors_take_what_the_optimizer_made(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    tree, saved = written(value, tmp_path_factory.getbasetemp())
    live = zeros_of(value)
    found = TreeReader(saved, Path("file")).read(tree, "p", torch.device("cpu"), live)
    assert alike(found, value)


def zeros_of(value: Any) -> Any:
    """What a fresh optimizer would have there."""
    if isinstance(value, Quantised):
        return Quantised(*map(torch.zeros_like, (value.codes, value.largest, value.qmap)), value.signed)
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: zeros_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(zeros_of(item) for item in value)
    return None if value is None else type(value)()
