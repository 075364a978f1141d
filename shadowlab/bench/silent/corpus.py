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
from shadowlab.bench.silent.held_out.registry import held_out_cases
from shadowlab.bench.silent.opened import hosts, orders, plain
from shadowlab.bench.silent.opened import two_ranks as opened_ranks

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
    *opened_ranks.CASES,
    *held_out_cases(),
    *healthy.CASES,
    *healthy_models.CASES,
    *healthy_steps.CASES,
    *healthy_data.CASES,
    *healthy_hosts.CASES,
)
