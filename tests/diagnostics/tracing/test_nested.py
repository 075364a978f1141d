"""Containers of an operator's arguments, as torch's own pytree sees them."""

from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

from diagnostics.tracing.nested import leaves, mapped

LEAVES = st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=2)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TREES)
def test_leaves_and_containers_are_pytrees(tree: object) -> None:
    assert leaves(tree) == tree_leaves(tree)
    assert mapped(repr, tree) == tree_map(repr, tree)
