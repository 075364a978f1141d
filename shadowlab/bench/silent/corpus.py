"""Every case, faults first; who is in a group of processes comes last."""

from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.cases import (
    accelerated,
    data,
    gradients,
    healthy,
    healthy_data,
    healthy_hosts,
    healthy_models,
    healthy_steps,
    lightning_loops,
    modes,
    ownership,
    scaling,
    trainer_loops,
    two_ranks,
)
from shadowlab.bench.silent.first_set import hosts, orders, plain
from shadowlab.bench.silent.first_set import two_ranks as first_ranks
from shadowlab.bench.silent.second_set.registry import second_set
from shadowlab.bench.silent.third_set.registry import third_set

CORPUS: tuple[Case, ...] = (
    *ownership.CASES,
    *gradients.CASES,
    *scaling.CASES,
    *modes.CASES,
    *data.CASES,
    *accelerated.CASES,
    *lightning_loops.CASES,
    *trainer_loops.CASES,
    *two_ranks.CASES,
    *plain.CASES,
    *orders.CASES,
    *hosts.CASES,
    *first_ranks.CASES,
    *second_set(),
    *third_set(),
    *healthy.CASES,
    *healthy_models.CASES,
    *healthy_steps.CASES,
    *healthy_data.CASES,
    *healthy_hosts.CASES,
)
