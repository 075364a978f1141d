"""Which samples a step reads is arithmetic: processes, accumulation, workers and interruptions do not change it."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.data.loader import endless_batches, in_order, micro_batch_positions
from shadowlab.data.sample_set import SampleSet
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.samples import Batch, collate


@given(st.integers(0, 100), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_step_takes_consecutive_positions_once(first: int, batch: int, accumulation: int, processes: int) -> None:
    taken = [
        position
        for rank in range(processes)
        for positions in micro_batch_positions(first, batch, accumulation, rank, processes)
        for position in positions
    ]
    assert sorted(taken) == list(range(first, first + batch * accumulation * processes))


@pytest.fixture(scope="module")
def dataset(stage_folder: dict[str, Path]) -> SampleSet:
    return open_dataset(stage_folder["data"], 32)


def stream(
    dataset: SampleSet,
    indices: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 1,
    accumulation: int = 1,
    rank: int = 0,
    processes: int = 1,
    first: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    return endless_batches(
        dataset,
        indices,
        collate=collate,
        seed=seed,
        first_position=first,
        batch_size=batch_size,
        accumulation=accumulation,
        rank=rank,
        num_processes=processes,
        num_workers=workers,
    )


def ids(
    dataset: SampleSet, num_steps: int, *, accumulation: int = 1, processes: int = 1, **settings: int
) -> list[set[str]]:
    """Ids of each step, all processes together; 1 sample a micro-batch."""
    steps: list[set[str]] = [set() for _ in range(num_steps)]
    shared = {"seed": 3, "accumulation": accumulation, "processes": processes, **settings}
    for rank in range(processes):
        batches = stream(dataset, range(len(dataset)), rank=rank, **shared)
        for number, batch in enumerate(islice(batches, num_steps * accumulation)):
            steps[number // accumulation] |= set(batch.ids)
    return steps


def test_processes_and_accumulation_are_interchangeable(dataset: SampleSet) -> None:
    wanted = ids(dataset, 3, processes=4)
    assert ids(dataset, 3, processes=2, accumulation=2) == wanted
    assert ids(dataset, 3, accumulation=4) == wanted


def test_an_epoch_reads_every_sample_once(dataset: SampleSet) -> None:
    first_epoch, second_epoch = ids(dataset, 8)[:8], ids(dataset, 16)[8:]
    assert set.union(*first_epoch) == set.union(*second_epoch) == set(dataset.ids)
    assert first_epoch != second_epoch


def test_a_resumed_stream_goes_on_in_mid_epoch(dataset: SampleSet) -> None:
    assert ids(dataset, 11)[5:] == ids(dataset, 6, first=5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker:UserWarning")  # on fewer than 3 cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_order(dataset: SampleSet, workers: int) -> None:
    """Across the end of an epoch, and within each micro-batch: the noise goes by position."""

    def order(workers: int) -> list[list[str]]:
        batches = stream(dataset, range(len(dataset)), seed=3, batch_size=3, first=5, workers=workers)
        return [batch.ids for batch in islice(batches, 4)]

    assert order(workers) == order(0)
    assert [sample.id for sample in in_order(dataset, [4, 1, 4, 7], num_workers=workers)] == [
        dataset.ids[i] for i in (4, 1, 4, 7)
    ]


def test_only_the_given_part_of_the_data_set_is_read(dataset: SampleSet) -> None:
    for batch in islice(stream(dataset, [1, 4, 6], batch_size=3), 3):
        assert set(batch.ids) == {dataset.ids[i] for i in (1, 4, 6)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_during_the_run_is_named(
    stage_folder: dict[str, Path], tmp_path: Path, workers: int
) -> None:
    """Also from a worker process, where an exception would come back as a wrapped traceback."""
    shutil.copytree(stage_folder["data"], tmp_path / "data")
    dataset = open_dataset(str(tmp_path / "data"), 32)
    file = tmp_path / "data" / "masks" / f"{dataset.ids[2]}.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=dataset.ids[2]) as caught:
        list(islice(stream(dataset, range(4), batch_size=2, workers=workers), 4))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
