"""What LayerStatistics sees of ordinary and odd modules, and that it leaves no trace."""

import copy
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics import LayerStatistics, TensorStatistics
from diagnostics.modules import leaf_modules, walk
from diagnostics.tensors import tensors_in

Collected = dict[str, dict[str, TensorStatistics]]


def record(model: nn.Module, *inputs: Tensor, backward: bool = True) -> Collected:
    statistics = LayerStatistics(model)
    with statistics.recording():
        output = model(*inputs)
        if backward:
            sum(tensor.float().square().sum() for tensor in tensors_in(output)).backward()
    assert_no_hooks(model)
    return statistics.collect()


def assert_no_hooks(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks
        for parameter in module.parameters():
            assert not parameter._backward_hooks


def net(**changes: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"b": nn.Linear(3, 4), "c": nn.ReLU(inplace=True), "a": nn.Linear(4, 2)}
    return nn.Sequential(OrderedDict(layers | changes))


class TestValues:
    def test_activation_and_gradient_against_hand_made(self):
        model, x = net(), torch.randn(5, 3)
        seen = record(model, x)
        hidden = model.b(x).detach().requires_grad_()
        active = hidden.relu()
        active.retain_grad()
        output = model.a(active)
        output.retain_grad()
        output.square().sum().backward()
        for name, tensor in (("b", hidden), ("c", active), ("a", output)):
            assert seen[name] == {
                "activation": TensorStatistics.of(tensor),
                "gradient": TensorStatistics.of(tensor.grad),
            }

    def test_in_place_module_keeps_what_came_before(self):
        """ReLU(inplace=True) overwrites its predecessor's output, which was measured before that."""
        seen = record(net(), torch.randn(64, 3))
        assert seen["b"]["activation"].fraction_zero == 0.0
        assert 0.2 < seen["c"]["activation"].fraction_zero < 0.8
        assert seen["b"]["gradient"].fraction_zero >= seen["c"]["activation"].fraction_zero

    def test_in_place_change_of_a_view(self):
        """Autograd drops the view, and with it what was to be measured; nothing breaks, the others are seen."""
        model = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.ReLU(inplace=True), nn.Linear(2, 1))
        seen = record(model, torch.randn(2, 3))
        assert [set(kinds) for kinds in seen.values()] == [
            {"activation", "gradient"},
            {"activation"},
            {"activation", "gradient"},
            {"activation", "gradient"},
        ]

    def test_order_is_that_of_execution(self):
        assert list(record(net(), torch.randn(2, 3))) == ["b", "c", "a"]

    def test_accumulated_micro_batches_are_one_tensor(self):
        model, x = net(), torch.randn(6, 3)
        statistics = LayerStatistics(model)
        with statistics.recording():
            for part in x.split(2):
                model(part).square().sum().backward()
        parts, whole = statistics.collect(), record(model, x)
        for name, kinds in whole.items():
            for kind, values in kinds.items():
                assert parts[name][kind].to_dict() == pytest.approx(values.to_dict(), rel=1e-5, abs=1e-7)

    def test_layers_that_hand_their_input_through(self):
        """Measured once, for every layer that returned it; changed in place, it is measured again."""
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(4, 2))
        seen = record(model, torch.randn(64, 3))
        assert list(seen) == ["0", "1", "2", "3", "4"]
        assert seen["0"] == seen["1"] == seen["2"]
        assert seen["0"]["activation"].fraction_zero == 0.0 < seen["3"]["activation"].fraction_zero
        assert all(set(kinds) == {"activation", "gradient"} for kinds in seen.values())

    def test_shared_module_is_named_once_and_merged(self):
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = self.second = nn.Linear(2, 2)
                self.tied = nn.Linear(2, 2)
                self.tied.weight = self.first.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.tied(self.second(self.first(x)))

        model = Shared()
        seen = record(model, torch.ones(3, 2))
        assert list(seen) == ["first", "tied"]
        first = model.first(torch.ones(3, 2))
        both = TensorStatistics.of(torch.cat([first, model.first(first)]))
        assert seen["first"]["activation"].to_dict() == pytest.approx(both.to_dict(), rel=1e-5)

    def test_modules_are_walked_as_torch_walks_them(self):
        shared, hole = nn.Linear(1, 1), nn.Module()
        hole.register_module("nothing", None)
        inner = nn.ModuleDict({"b": nn.Sequential(shared, nn.ReLU()), "a": shared, "hole": hole})
        model = nn.ModuleList([inner, nn.Sequential(inner, nn.Tanh()), nn.ModuleList()])
        assert list(walk(model)) == list(model.named_modules())

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_changes_no_number(self, reentrant: bool):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.block = nn.Linear(3, 3), net()
                self.use_checkpoint = False

            def forward(self, x: Tensor) -> Tensor:
                h = self.stem(x)
                return checkpoint(self.block, h, use_reentrant=reentrant) if self.use_checkpoint else self.block(h)

        model, x = Model(), torch.randn(4, 3)
        plain = record(model, x)
        model.use_checkpoint = True
        assert record(model, x) == plain
        assert set(plain["block.b"]) == {"activation", "gradient"}

    def test_nonfinite_values_are_counted(self):
        seen = record(net(), torch.tensor([[float("nan"), 0.0, 0.0], [1.0, 1.0, 1.0]]))
        assert seen["b"]["activation"].num_nonfinite == 4

    def test_autocast(self):
        statistics = LayerStatistics(model := net())
        with statistics.recording(), torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(4, 3))
            output.float().square().mean().backward()
        assert all(set(kinds) == {"activation", "gradient"} for kinds in statistics.collect().values())


class TestWhatRuns:
    def test_no_grad_and_eval_give_activations_only(self):
        with torch.no_grad():
            seen = record(net().eval(), torch.randn(2, 3), backward=False)
        assert [set(kinds) for kinds in seen.values()] == [{"activation"}] * 3
        with torch.inference_mode():
            assert record(net(), torch.randn(2, 3), backward=False).keys() == seen.keys()

    def test_frozen_beginning_has_no_gradient(self):
        model = net(c=nn.Tanh())
        model.b.requires_grad_(False)
        assert [set(kinds) for kinds in record(model, torch.randn(2, 3)).values()] == [
            {"activation"},
            {"activation"},
            {"activation", "gradient"},
        ]

    def test_module_that_never_runs_is_absent(self):
        model = net()
        model.unused = nn.Linear(1, 1)
        model.forward = lambda x: model.a(model.c(model.b(x)))
        assert "unused" not in record(model, torch.randn(2, 3))

    def test_model_that_is_a_leaf(self):
        assert list(record(nn.Linear(3, 2), torch.ones(1, 3))) == ["model"]

    def test_module_added_after_construction_is_seen(self):
        model = net()
        statistics = LayerStatistics(model)
        model.append(nn.Linear(2, 2))
        with statistics.recording():
            model(torch.ones(1, 3))
        assert list(statistics.collect()) == ["b", "c", "a", "3"]

    def test_module_that_returns_its_parameter(self):
        """The hook on a parameter would outlive the graph, and count every later step again."""

        class Token(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.value = nn.Parameter(torch.ones(2))

            def forward(self) -> Tensor:
                return self.value

        model = nn.Module()
        model.token = Token()
        statistics = LayerStatistics(model)
        for _ in range(3):
            with statistics.recording():
                (model.token() * 3).sum().backward()
            assert_no_hooks(model)
            assert statistics.collect()["token"]["gradient"].norm == pytest.approx(3 * 2**0.5)

    def test_graph_of_an_earlier_recording_is_not_counted(self):
        model = net()
        statistics = LayerStatistics(model)
        with statistics.recording():
            loss = model(torch.ones(1, 3)).sum()
        statistics.collect()
        with statistics.recording():
            model(torch.ones(1, 3))
            loss.backward()
        assert all("gradient" not in kinds for kinds in statistics.collect().values())


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Output:
    sample: Tensor
    note: str = "text"


class Model(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.leaf = nn.Identity()
        self.leaf.forward = wrap

    def forward(self, x: Tensor):
        return self.leaf(x)


@pytest.mark.parametrize(
    ("wrap", "count"),
    [
        (lambda x: (x, [x, {"deep": x}]), 3),
        (lambda x: OrderedDict(sample=x * 2, index=torch.arange(3), text="no"), 1),
        (lambda x: Pair(x, x + 1), 2),
        (lambda x: Output(x * 2), 1),
        (lambda x: [x.to(torch.complex64)], 1),
    ],
)
def test_nested_outputs(wrap, count: int):
    x = torch.ones(2, requires_grad=True)
    assert len(list(tensors_in(wrap(x)))) == count
    statistics = LayerStatistics(model := Model(wrap))
    with statistics.recording():
        sum(tensor.abs().sum() for tensor in tensors_in(model(x))).backward()
    seen = statistics.collect()["leaf"]
    assert set(seen) == {"activation", "gradient"}


@pytest.mark.parametrize("value", [None, "text", 3, torch.arange(3), torch.ones(2, device="meta"), object()])
def test_outputs_without_numbers_are_left_out(value: object):
    statistics = LayerStatistics(model := Model(lambda x: value))
    with statistics.recording():
        model(torch.ones(1))
    assert statistics.collect() == {}


class TestNoTrace:
    def test_hooks_live_only_in_the_recording(self):
        statistics = LayerStatistics(model := net())
        assert_no_hooks(model)
        with statistics.recording():
            assert model.b._forward_hooks
            statistics.detach()
            assert_no_hooks(model)
            model(torch.ones(1, 3))
        assert statistics.collect() == {}
        with statistics.recording():
            model(torch.ones(1, 3))
        assert statistics.collect() == {}
        statistics.attach()
        with statistics.recording():
            model(torch.ones(1, 3))
        assert len(statistics.collect()) == 3

    def test_exception_inside_takes_hooks_off(self):
        statistics = LayerStatistics(model := net())
        model.append(broken := nn.Identity())
        broken.forward = lambda x: 1 / 0
        with pytest.raises(ZeroDivisionError), statistics.recording():
            model(torch.ones(1, 3))
        assert_no_hooks(model)
        assert len(statistics.collect()) == 3  # what ran until then
        with statistics.recording():
            pass
        assert statistics.collect() == {}

    def test_recordings_do_not_nest(self):
        statistics = LayerStatistics(net())
        with statistics.recording(), pytest.raises(RuntimeError, match="recording already"), statistics.recording():
            pass

    def test_disabled(self):
        statistics = LayerStatistics(model := net())
        with statistics.recording(enabled=False):
            assert_no_hooks(model)
            model(torch.ones(1, 3)).sum().backward()
        assert statistics.collect() == {}

    def test_copies_pickles_and_state_are_those_of_a_bare_model(self):
        statistics = LayerStatistics(model := net())
        with statistics.recording():
            model(torch.ones(1, 3)).sum().backward()
        twin = copy.deepcopy(model)
        assert_no_hooks(twin)
        assert_no_hooks(pickle.loads(pickle.dumps(model)))
        torch.save(model, io.BytesIO())
        assert model.state_dict().keys() == net().state_dict().keys()
        with statistics.recording():
            twin(torch.ones(1, 3))
        assert statistics.collect() == {}

    def test_other_hooks_stay_and_are_obeyed(self):
        model = net()
        kept = model.b.register_forward_hook(lambda module, inputs, output: output * 0)
        statistics = LayerStatistics(model)
        with statistics.recording():
            model(torch.ones(1, 3))
        assert list(model.b._forward_hooks) == [kept.id]
        assert statistics.collect()["b"]["activation"].fraction_zero == 1.0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_training_is_bit_identical(self, dtype: torch.dtype):
        def trained(watched: bool) -> tuple[list[Tensor], Tensor]:
            model = net(d=nn.Dropout(0.2), e=nn.BatchNorm1d(2)).to(dtype)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            statistics = LayerStatistics(model)
            torch.manual_seed(1)
            for _ in range(8):
                with statistics.recording(enabled=watched):
                    model(torch.randn(4, 3, dtype=dtype)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                assert bool(statistics.collect()) == watched
            return [tensor.clone() for tensor in model.state_dict().values()], torch.get_rng_state()

        (bare, state), (watched, watched_state) = trained(False), trained(True)
        assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
        assert torch.equal(state, watched_state)


class TestWrappers:
    def test_distributed_data_parallel_keeps_the_bare_names(self, tmp_path):
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            bare = net(c=nn.Tanh())
            model = nn.parallel.DistributedDataParallel(bare)
            statistics = LayerStatistics(model)
            for _ in range(2):
                with statistics.recording():
                    model(torch.ones(2, 3)).sum().backward()
                assert_no_hooks(bare)
                seen = statistics.collect()
            assert [set(kinds) for kinds in seen.values()] == [{"activation", "gradient"}] * 3
            assert list(seen) == ["b", "c", "a"] == list(leaf_modules(model))
            del model.reducer, model.logger  # holding the group last, it would wait for gloo's threads forever
        finally:
            torch.distributed.destroy_process_group()

    def test_compiled_model_is_measured_eagerly(self):
        """Backend `eager` traces without a C++ compiler. Hooks after compilation would go unnoticed."""
        bare = net(c=nn.Tanh())
        model, x = torch.compile(bare, backend="eager"), torch.ones(2, 3)
        before = model(x)
        statistics = LayerStatistics(model)
        with statistics.recording():
            output = model(x)
            output.sum().backward()
        assert list(statistics.collect()) == ["b", "c", "a"]
        assert torch.equal(before, output)
        assert torch.equal(model(x), output)
        in_place = net(c=nn.Tanh())
        in_place.b.compile(backend="eager")
        in_place(x)
        assert list(record(in_place, x)) == ["b", "c", "a"]
