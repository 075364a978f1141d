"""Every case of the second set, faults first."""

from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.second_set import (
    graph,
    healthy,
    healthy_hosts,
    hosts,
    inputs,
    lightning_modes,
    orders,
    plain,
    two_ranks,
)


def second_set() -> tuple[Case, ...]:
    """Loops that were written after the first set had been scored, before any rule could be read."""
    parts = (plain, inputs, graph, orders, hosts, lightning_modes, two_ranks, healthy, healthy_hosts)
    return tuple(case for part in parts for case in part.CASES)
