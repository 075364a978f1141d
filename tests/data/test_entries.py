"""Columns give back the entries that they were made from."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.data.entries import Entries, EntriesWriter
from shadowlab.data.sources import Entry, FileSource, SliceSource, Source
from shadowlab.data.texts import Coded, Texts

ROOT = Path("somewhere") / "set"
ROLES = ("object", "mask", "shadow")
# Any text, lone surrogates too: file names that are no UTF-8 are read with them.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
SIZES = st.integers(0, 2**63 - 1)


@st.composite
def sources(draw: st.DrawFn, sample: str) -> Source:
    folders = st.sampled_from(["objects", "masks", "a/b"])
    plain = st.text("abcXYZ0189äß-_. ", min_size=1, max_size=6).filter(lambda text: set(text) - {"."})
    name = draw(st.sampled_from(["{0}.image.png", "x/{0}{0}", "other"])).format(sample)
    if draw(st.booleans()):
        return SliceSource(ROOT / draw(st.sampled_from(["", "1.tar", "b/2.tar"])), name, draw(SIZES), draw(SIZES))
    name = f"{draw(folders)}/{draw(plain)}"
    return FileSource(ROOT / name, name, draw(SIZES))


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    found = []
    for sample in draw(st.lists(TEXTS, unique=True, max_size=6)):
        values = draw(st.none() | st.tuples(*[st.floats(allow_nan=False)] * 3))
        roles = draw(st.lists(st.sampled_from(ROLES), unique=True))
        ordered = [role for role in ROLES if role in roles]
        pictures = {role: draw(sources(sample)) for role in ordered}
        found.append(Entry(sample, draw(TEXTS), values, draw(st.none() | TEXTS), pictures))
    return found


def columns(given_entries: list[Entry]) -> Entries:
    writer = EntriesWriter(ROOT, ROLES)
    for entry in given_entries:
        writer.add(entry)
    return writer.finish()


@given(entries())
def test_columns_give_back_the_same_entries_in_the_order_of_their_ids(given_entries: list[Entry]) -> None:
    wanted = sorted(given_entries, key=lambda entry: entry.id)
    made = columns(given_entries)
    for found in (made, Entries(ROOT, ROLES, made.arrays()), pickle.loads(pickle.dumps(made))):
        assert list(found) == wanted and [found[i] for i in range(len(found))] == wanted
        assert [list(one.sources) for one in found] == [list(one.sources) for one in wanted]  # the order of reading
        assert found.ids == [entry.id for entry in wanted]
        assert found.object_ids == [entry.object_id for entry in wanted]
        assert found.num_pictures == sum(len(entry.sources) for entry in wanted)
        assert found[1:] == wanted[1:] and found[::-1] == wanted[::-1]


@given(st.lists(TEXTS, max_size=8), st.data())
def test_texts_are_a_list_of_texts(texts: list[str], data: st.DataObject) -> None:
    for found in (Texts.of(texts), Coded(Texts.of(texts), np.arange(len(texts), dtype=np.int32))):
        assert found == texts and list(found) == texts and len(found) == len(texts)
        assert not texts or found != texts[:-1]
        piece = data.draw(st.slices(len(texts)))
        assert found[piece] == texts[piece]
        for i in range(-len(texts), len(texts)):
            assert found[i] == texts[i] and found[i] in found and found.index(found[i]) == texts.index(texts[i])
        for i in (len(texts), -len(texts) - 1):
            with pytest.raises(IndexError):
                found[i]


def test_an_entry_takes_little_memory() -> None:
    """A quarter of a million of them are meant to be held, next to the model."""
    count = 1000
    made = columns(
        [
            Entry(f"obj_{i // 4:06d}_{i % 4}", f"obj_{i // 4:06d}", (1.0, 2.0, float(i)), None, pictures(i))
            for i in range(count)
        ]
    )
    assert sum(column.nbytes for column in made.arrays().values()) < 150 * count


def pictures(i: int) -> dict[str, Source]:
    names = {role: f"{role}s/obj_{i // 4:06d}_{i % 4}.png" for role in ROLES}
    return {role: FileSource(ROOT / name, name, 1000 + i) for role, name in names.items()}


def test_what_columns_cannot_hold_is_refused_and_not_bent() -> None:
    elsewhere = Entry("a", "a", (1.0,), None, {"mask": FileSource(Path("/etc/passwd"), "masks/a.png", 1)})
    with pytest.raises(ValueError, match="does not lie at"):
        columns([elsewhere])
    with pytest.raises(ValueError, match="others have 1"):
        columns([Entry("a", "a", (1.0,), None, {}), Entry("b", "b", (1.0, 2.0), None, {})])
    with pytest.raises(ValueError, match="other roles: depth"):
        columns([Entry("a", "a", None, None, {"depth": FileSource(ROOT / "d", "d", 1)})])


@pytest.mark.parametrize("name", sorted(columns([]).arrays()))
def test_columns_that_do_not_fit_are_refused_before_they_are_used(name: str) -> None:
    arrays = columns([Entry("a", "a", (1.0,), "t", {"mask": SliceSource(ROOT / "1.tar", "a.png", 1, 1)})]).arrays()
    column = arrays[name]
    broken = [{**arrays, name: column.astype(np.float32)}, {k: v for k, v in arrays.items() if k != name}]
    longer = np.concatenate([column, np.ones((1, *column.shape[1:]), column.dtype)])
    broken.append({**arrays, name: column + 1 if name.endswith(".ends") else longer})
    if name.endswith(("_of", ".around", ".archives")):
        broken += [{**arrays, name: np.full_like(column, wrong)} for wrong in (-2, 7)]
    for one in broken:
        with pytest.raises(ValueError):
            Entries(ROOT, ROLES, one)
