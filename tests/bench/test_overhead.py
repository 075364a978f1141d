"""The measurement of overhead runs and tells the truth about reads and weights. Times are not judged here."""

import json

import pytest
import torch

from shadowlab.bench import overhead
from shadowlab.bench.trial import narrowed_sdxl
from tests import tiny


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other in tiny operators take seconds where the machine has other work."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def test_a_miniature_gives_every_row(hub_folder):
    lines: list[str] = []
    unet = tiny.shadow_unet(hub_folder)
    report = overhead.measure_overhead(batch=2, size=tiny.SIDE, repeats=2, on_row=lines.append, unet=unet, trips=1)
    expected = ["BARE", "CONTROL", "FULL", "BETWEEN", "CADENCE", "ANOMALY", "UNDERFLOW_OVERFLOW"]
    assert [row.name for row in report.rows] == [getattr(overhead, name) for name in expected]
    for row in report.rows:
        assert row.ratio is not None or "not installed" in row.note
    assert report.row(overhead.BARE).ratio == 1.0
    assert sum(line.startswith("round ") for line in lines) == 2

    assert list(report.bit_identical.values()) == [True, True]
    assert [trip.verdict for trip in report.trips] == [
        "data concatenated, samples [1]",
        "forward log mid_block, samples [1]",  # a hook on resnets.0 runs when that module is done
    ]
    # None of its own where the loop notes what it reads; else one read of the flags, before the weights move. After a
    # step that is due come the statistics, what the optimizer moved, and whether ranks agree.
    assert report.host_reads[overhead.BETWEEN].own == {}
    assert report.host_reads[overhead.FULL].own == {"after": 2}
    assert report.host_reads[overhead.UNNOTED].own == {"optimizer": 1}
    for reads in report.host_reads.values():
        assert reads.num_own_before_optimizer == 0
        assert {part: number - reads.own.get(part, 0) for part, number in reads.watched.items()} == {
            part: reads.bare.get(part, 0) for part in reads.watched
        }

    assert json.loads(json.dumps(report.to_json()))["cadence"] == 50
    table = overhead.format_table(report)
    assert all(row.name in table for row in report.rows)


def test_narrowing_keeps_sdxls_depth():
    unet = narrowed_sdxl(1e6)
    assert sum(p.numel() for p in unet.parameters()) < 3e6
    assert len(unet.mid_block.attentions[0].transformer_blocks) == 10
