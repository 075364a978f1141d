"""Every case of the third set, faults first."""

from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.third_set import (
    graph,
    healthy,
    healthy_hosts,
    hosts,
    inputs,
    modes,
    orders,
    ownership,
    two_ranks,
)


def third_set() -> tuple[Case, ...]:
    """Loops that were written after the second set had been opened, before any rule could be read."""
    parts = (ownership, graph, inputs, orders, modes, hosts, two_ranks, healthy, healthy_hosts)
    return tuple(case for part in parts for case in part.CASES)
