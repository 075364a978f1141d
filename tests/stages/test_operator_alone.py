"""What operator.pt names is run only from a list, on plain and bounded arguments; everything else is one line."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from diagnostics.verdict import Verdict
from shadowlab.stages.why.allowed_operators import find_operator
from shadowlab.stages.why.counterfactuals import FINITE, NOT_RUN, SAME, Outcome
from shadowlab.stages.why.operator_alone import operator_outcomes

CPU = torch.device("cpu")
VERDICT = Verdict("forward", "divide_by_zero", "out_of_domain", op="log")
X = torch.tensor([0.0, 1.0])


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows when a library is loaded; `tmp_path / "made"` must not come into being either."""
    loaded: list[Any] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    yield loaded
    assert not loaded
    assert [path.name for path in tmp_path.iterdir()] in ([], ["operator.pt"])


def outcomes(folder: Path, content: Any) -> list[Outcome]:
    torch.save(content, folder / "operator.pt")
    return list(operator_outcomes(folder, VERDICT, CPU))


def call(operator: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"operator": operator, "args": list(args), "kwargs": kwargs, "num_threads": 1}


def refusal(folder: Path, content: Any) -> str:
    """The reason of the one outcome, a line that names the file."""
    (outcome,) = outcomes(folder, content)
    assert outcome.result == NOT_RUN
    assert outcome.meaning.startswith(f"{folder / 'operator.pt'}: ")
    assert len(outcome.meaning.splitlines()) == 1 and len(outcome.meaning) < len(str(folder)) + 400
    return outcome.meaning


# --- names -----------------------------------------------------------------------------------------------------------

LIBRARY = torch.library.Library("hostile", "FRAGMENT")
LIBRARY.define("run(Tensor x) -> Tensor")
LIBRARY.impl("run", lambda x: pytest.fail("was run"), "CompositeExplicitAutograd")

NAMES = [
    "load_library",
    "ops.load_library",
    "aten.from_file.default",
    "aten.from_file.out",
    "aten.save",
    "aten.save.default",
    "aten._print.default",
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
    "aten.warn.default",
    "aten.manual_seed.default",
    "aten.set_.source_Tensor",
    "aten.resize_.default",
    "aten.as_strided.default",
    "aten.record_stream.default",
    "aten.empty.memory_format",
    "aten._cudnn_init_dropout_state.default",
    "aten.rand.default",
    "aten.mul.left_t",  # TorchScript's lists
    "aten.add.str",
    "aten.pow.int",
    "aten.native_batch_norm.out",
    "aten.max_pool2d_with_indices_backward.default",  # writes where its indices say
    "prims.copy_to.default",
    "prims._make_token.default",
    "prims.from_file.default",
    "c10d.send.default",
    "_c10d_functional.all_reduce.default",
    "profiler._record_function_enter.default",
    "quantized.add.default",
    "hostile.run.default",
    "aten.add",
    "aten.add.",
    "aten.add.nothing",
    "aten.add.__class__",
    "aten.add.overloads",
    "aten.add.default._schema",
    "aten.add.Tensor.redispatch",
    "aten.add.Tensor.__class__.__init__",
    "aten.__getattr__",
    "aten.__getattr__.default",
    "aten.__class__.__mro__",
    "aten._dir.append",
    "__class__.__base__.__subclasses__",
    "import_module.x.y",
    "aten::add.Tensor",
    "aten/add/Tensor",
    " aten.add.Tensor",
    "aten.add.Tensor\n",
    "aten.add .Tensor",
    "ATEN.ADD.TENSOR",
    "аten.add.Tensor",  # a Cyrillic a
    "ａｔｅｎ.add.Tensor",
    "aten.log\x00.default",
    "\x1b[2Jaten.log.default",
    "",
    ".",
    "..",
    "aten..default",
    "." * 10_000,
    "aten" + ".add" * 10_000,
    "aten.log." + "default" * 10_000,
    "💥.💥.💥",
    None,
    7,
    3.5,
    b"aten.log.default",
    ["aten.log.default"],
    {"aten": "log"},
    X,
    torch.float32,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_name_that_is_not_listed_is_not_run(name: Any, tmp_path: Path, canaries: list[Any]) -> None:
    for arguments in ([X], [str(tmp_path / "made"), True, 4], []):
        assert "not on the list" in refusal(tmp_path, call(name, *arguments))


@given(st.text() | st.lists(st.sampled_from(["aten", "prims", "add", "Tensor", "_schema", "load_library", ""])))
def test_no_text_leads_past_the_list(text: str | list[str]) -> None:
    try:
        found = find_operator(text if isinstance(text, str) else ".".join(text))
    except ValueError:
        return
    assert isinstance(found, torch._ops.OpOverload) and found.namespace in ("aten", "prims")


# --- structure and arguments -----------------------------------------------------------------------------------------


def with_attribute() -> torch.Tensor:
    tensor = X.clone()
    tensor.clone = OrderedDict  # type: ignore[method-assign]
    return tensor


BROKEN = {
    "nothing": {},
    "no mapping": [1, 2],
    "a tensor": X,
    "no name": {"args": [X], "kwargs": {}},
    "no args": {"operator": "aten.log.default", "kwargs": {}},
    "no kwargs": {"operator": "aten.log.default", "args": [X]},
    "args are a tensor": {"operator": "aten.log.default", "args": X, "kwargs": {}},
    "kwargs are a list": {"operator": "aten.log.default", "args": [X], "kwargs": []},
    "kwargs by number": {"operator": "aten.log.default", "args": [X], "kwargs": {1: X}},
    "too few": call("aten.log.default"),
    "too many": call("aten.log.default", X, X),
    "unknown keyword": call("aten.log.default", X, file="made"),
    "twice": call("aten.log.default", X, self=X),
    "a word": call("aten.log.default", "made"),
    "a long word": call("aten.div.Tensor_mode", X, X, rounding_mode="floor" * 100),
    "a mapping": call("aten.log.default", {"x": X}),
    "lists in lists": call("aten.cat.default", [[X]]),
    "a set": call("aten.log.default", {1}),
    "bytes": call("aten.log.default", b"x"),
    "a tensor with attributes": call("aten.log.default", with_attribute()),
    "a parameter": call("aten.log.default", torch.nn.Parameter(X)),
    "a sparse tensor": call("aten.log.default", torch.eye(2).to_sparse()),
    "a tensor without memory": call("aten.log.default", torch.empty(2, device="meta")),
    "other shapes": call("aten.mm.default", torch.ones(2, 3), torch.ones(2, 3)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_wrong_structure_is_one_line(content: Any, tmp_path: Path, canaries: list[Any]) -> None:
    refusal(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"cos\nsystem\n(S'touch made'\ntR."])
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path, canaries: list[Any]) -> None:
    (tmp_path / "operator.pt").write_bytes(content)
    (outcome,) = operator_outcomes(tmp_path, VERDICT, CPU)
    assert outcome.result == NOT_RUN and "cannot be read" in outcome.meaning


WIDE = torch.ones(1).expand(2**40)
LARGE = {
    "operands": call("aten.log.default", WIDE),
    "many of them": call("aten.cat.default", [0] * 2**18),
    "constant": call("aten.full.default", [10**12], 1.0, device=CPU, pin_memory=False),
    "negative": call("aten.full.default", [-1], 1.0),
    "no int64": call("aten.full.default", [2**70], 1.0),
    "spread": call("aten.div.Tensor", torch.ones(2**15, 1), torch.ones(2**15)),
    "product": call("aten.mm.default", torch.ones(2**15, 1), torch.ones(1, 2**15)),
    "range": call("aten.arange.start_step", 0, 10**12, 1e-3),
    "padding": call("aten.constant_pad_nd.default", X, [0, 10**12]),
    "picture": call("aten.upsample_nearest2d.default", torch.ones(1, 1, 2, 2), [10**6, 10**6]),
    "alignments": call("aten._ctc_loss.default", torch.ones(2**14, 1, 2), torch.ones(1, 2**14).long(), [2], [2**14]),
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_what_would_fill_the_memory_is_not_run(content: Any, tmp_path: Path, canaries: list[Any]) -> None:
    refusal(tmp_path, content)
    assert (tmp_path / "operator.pt").stat().st_size < 2**22


ROW, PICTURE, HEADS = torch.ones(3), torch.ones(2, 3, 4, 4), torch.ones(1, 2, 3, 8)
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False}
MISFITS = {  # each made a kernel read or write outside of its arguments
    "softmax backward": call("aten._softmax_backward_data.default", torch.ones(2, 3), ROW[:1], 1, torch.float32),
    "batch norm": call("aten.native_batch_norm.default", PICTURE, ROW[:1], ROW, ROW, ROW, False, 0.1, 1e-5),
    "layer norm backward": call(
        "aten.native_layer_norm_backward.default", PICTURE, PICTURE, [4], ROW, ROW, None, None, [True] * 3
    ),
    "group norm": call("aten.native_group_norm.default", PICTURE, None, None, 2, 3, 2**20, 1, 1e-5),
    "no groups": call("aten.native_group_norm.default", PICTURE, None, None, 2, 3, 16, 0, 1e-5),
    "fused moments": call("aten._fused_adamw_.default", [ROW], [ROW], [ROW[:1]], [ROW], [], [ROW[:1]], **ADAM),
    "fused lists": call("aten._fused_adamw_.default", [ROW, ROW], [ROW, ROW], [ROW], [ROW], [], [ROW[:1]], **ADAM),
    "fused words": call("aten._fused_adamw_.default", "self", [ROW], [ROW], [ROW], [], [ROW[:1]], **ADAM),
    "attention": call("aten._scaled_dot_product_flash_attention_for_cpu.default", HEADS, HEADS[:, :1], HEADS[:, :1]),
    "targets": call("aten._ctc_loss.default", torch.ones(4, 1, 2), torch.tensor([[2**40]]), [4], [1]),
    "lengths": call("aten._ctc_loss.Tensor", torch.ones(4, 1, 2), torch.ones(1, 1).long(), ROW.long(), ROW.long()),
}


@pytest.mark.parametrize("content", MISFITS.values(), ids=MISFITS)
def test_arguments_that_a_kernel_would_believe_are_checked(content: Any, tmp_path: Path, canaries: list[Any]) -> None:
    assert "do not fit one another" in refusal(tmp_path, content)


def test_the_whole_command_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(path))
    (tmp_path / "verdict.json").write_text(json.dumps(VERDICT.to_json()))
    (tmp_path / "repro.py").touch()
    made = tmp_path / "made"
    for name in ("load_library", "aten.from_file.default"):
        torch.save(call(name, str(made), True, 4), tmp_path / "operator.pt")
        result = CliRunner().invoke(app, ["why", str(tmp_path), "--json"])
        assert result.exit_code == 0, result.stderr
        assert "Traceback" not in result.stderr
        (outcome,) = json.loads(result.stdout)["counterfactuals"]
        assert outcome["result"] == NOT_RUN and name in outcome["meaning"] and "operator.pt" in outcome["meaning"]
        assert not made.exists()


# --- what is run -----------------------------------------------------------------------------------------------------

ROWS = [ROW.clone()], [ROW.clone()], [ROW.clone()], [ROW.clone()]
RUN = {
    "log": (call("aten.log.default", X), [SAME, SAME]),
    "in place": (call("aten.log_.default", X), [SAME, SAME]),
    "out": (call("aten.log.out", X, out=torch.ones(2)), [SAME, SAME]),
    "of prims": (call("prims.log.default", X), [SAME, SAME]),
    "a list": (call("aten._foreach_log.default", [X, X]), [SAME, SAME]),
    "a cast": (call("aten._to_copy.default", X + 1e5, dtype=torch.float16, device=CPU), [SAME, FINITE]),
    "elsewhere": (
        call("aten._to_copy.default", X + 1e5, dtype=torch.float16, device=torch.device("cuda:7")),
        [SAME, FINITE],
    ),
    "a number": (call("aten.full.default", [2], float("inf"), dtype=None, layout=torch.strided), [SAME, SAME]),
    "fused": (
        call("aten._fused_adamw_.default", *ROWS, [], [torch.ones(1)], **ADAM | {"lr": float("inf")}),
        [SAME, SAME],
    ),
    "norm": (call("aten.native_batch_norm.default", PICTURE, ROW, ROW, ROW, ROW - 3, False, 0.1, 1e-5), [SAME, SAME]),
    "attention": (
        call("aten._scaled_dot_product_flash_attention_for_cpu.default", HEADS * 1e30, HEADS * 1e30, HEADS),
        [SAME, FINITE],
    ),
    "nothing bad": (call("aten.sqrt.default", X), [FINITE, FINITE]),
}


@pytest.mark.parametrize(("content", "wanted"), RUN.values(), ids=RUN)
def test_what_is_listed_is_run(content: Any, wanted: list[str], tmp_path: Path) -> None:
    assert [outcome.result for outcome in outcomes(tmp_path, content)] == wanted, outcomes(tmp_path, content)


def test_dropout_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert outcomes(tmp_path, call("aten.native_dropout.default", X, 0.5, True))[0].result == FINITE
    assert torch.equal(torch.get_rng_state(), before)
