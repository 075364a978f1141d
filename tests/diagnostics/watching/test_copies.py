"""Copies put any nesting of values back bit for bit, into the objects that held them."""

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diagnostics.watching.copies import Copies
from tests.diagnostics.states import bits_of
from tests.diagnostics.watching.eight_bits import EightBit

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.bool,
)
TABLE = torch.linspace(-1, 1, 256)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Factors:
    left: Any
    right: Any


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    tensor = values.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()) and tensor.is_floating_point():
        tensor = torch.where(tensor.float() > 0, torch.nan, tensor.float()).to(tensor.dtype)
    return EightBit.zeros_like(tensor, TABLE.clone()) if draw(st.integers(0, 4)) == 0 else tensor


leaves = st.one_of(tensors(), st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans())
keys = st.one_of(st.integers(0, 9), st.text(max_size=2))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=4)),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda items: defaultdict(dict, items)),
        st.sets(st.integers(0, 9), max_size=3),
        st.tuples(inner, inner).map(lambda two: Pair(*two)),
        st.tuples(inner, inner).map(lambda two: Factors(*two)),
    ),
    max_leaves=12,
)


def spoil(value: Any, how: st.DataObject) -> None:
    """Change everything that can be changed, in one of the ways in which an optimizer may."""
    if isinstance(value, EightBit):
        spoil(value.codes, how)
        value.scales = value.scales + 1  # by assignment
        return
    if isinstance(value, Tensor):
        if how.draw(st.booleans()):
            value.data = torch.ones(2, 2)  # other memory, dtype and shape
        else:
            value.fill_(1)
        return
    items = list(value.values()) if isinstance(value, dict) else []
    items = [value.left, value.right] if isinstance(value, Factors) else items
    items = list(value) if isinstance(value, (list, tuple, deque)) else items
    for item in items:
        spoil(item, how)
    if isinstance(value, dict):
        value.pop(next(iter(value), None), None)
        value["new"] = torch.zeros(3)
    elif isinstance(value, (list, deque)):
        value.append("new")
        value.reverse()
    elif isinstance(value, set):
        value.add(-1)
    elif isinstance(value, Factors):
        value.left = "new"


def identities(value: Any) -> list[int]:
    """Of everything that can be changed in place, outermost first."""
    inner = list(value.values()) if isinstance(value, dict) else []
    inner = [value.left, value.right] if isinstance(value, Factors) else inner
    inner = list(value) if isinstance(value, (list, tuple, deque)) else inner
    inner = [value.codes, value.scales, value.table] if isinstance(value, EightBit) else inner
    own = [id(value)] if isinstance(value, (Tensor, dict, list, deque, set, Factors)) else []
    return own + [number for item in inner for number in identities(item)]


@given(tree=trees, data=st.data())
def test_any_tree_comes_back(tree: Any, data: st.DataObject) -> None:
    state = {"tree": tree}
    before, same = bits_of(state), identities(tree)
    copies = Copies()
    copies.add(state)
    for _ in range(2):  # before the repetition of a step and after it
        spoil(tree, data)
        state["tree"] = None
        copies.restore()
        assert bits_of(state) == before
        assert identities(tree) == same


def test_what_occurs_twice_is_copied_once_and_stays_shared() -> None:
    shared, other = torch.zeros(3), torch.zeros(3)
    copies = Copies()
    copies.leave(other)
    state: dict[str, Any] = {"a": shared, "b": [shared], "c": other}
    state["itself"] = state
    copies.add(state)
    assert copies.holds(shared) and copies.values_of(shared) is not None
    assert not copies.holds(other) and copies.values_of(other) is None
    shared.add_(1)
    other.add_(1)
    state["b"] = [shared.clone()]
    copies.restore()
    assert state["a"] is state["b"][0] is shared and not shared.any()
    assert state["itself"] is state
    assert other.all()


def test_other_objects_are_kept_as_they_are() -> None:
    """A model, a generator or a function in a state is not the state's to copy."""
    model, generator = torch.nn.Linear(1, 1), torch.Generator()
    state = {"model": model, "generator": generator, "function": len}
    copies = Copies()
    copies.add(state)
    state.clear()
    copies.restore()
    assert state == {"model": model, "generator": generator, "function": len}
