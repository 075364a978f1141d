"""All mutants, those of the code by family."""

import difflib
from collections.abc import Sequence

from shadowlab.bench.mutants.average import AVERAGE
from shadowlab.bench.mutants.checkpoints import CHECKPOINTS
from shadowlab.bench.mutants.conditions import CONDITIONS
from shadowlab.bench.mutants.data import DATA_MUTANTS
from shadowlab.bench.mutants.distributed import DISTRIBUTED
from shadowlab.bench.mutants.light import LIGHT
from shadowlab.bench.mutants.metrics import METRICS
from shadowlab.bench.mutants.mutant import CodeMutant, DataMutant
from shadowlab.bench.mutants.noise_and_time import NOISE_AND_TIME
from shadowlab.bench.mutants.objective import OBJECTIVE
from shadowlab.bench.mutants.optimizer import OPTIMIZER
from shadowlab.bench.mutants.precision import PRECISION
from shadowlab.bench.mutants.reading import READING
from shadowlab.bench.mutants.sampler import SAMPLER
from shadowlab.bench.mutants.split_and_order import SPLIT_AND_ORDER
from shadowlab.bench.mutants.step import STEP
from shadowlab.bench.mutants.validation import VALIDATION
from shadowlab.errors import UserError

FAMILIES: dict[str, tuple[CodeMutant, ...]] = {
    "conditions": CONDITIONS,
    "noise and time": NOISE_AND_TIME,
    "objective": OBJECTIVE,
    "step": STEP,
    "optimizer": OPTIMIZER,
    "average": AVERAGE,
    "data reading": READING,
    "light": LIGHT,
    "sampler": SAMPLER,
    "validation": VALIDATION,
    "metrics": METRICS,
    "checkpoints": CHECKPOINTS,
    "split and order": SPLIT_AND_ORDER,
    "distributed": DISTRIBUTED,
    "precision": PRECISION,
}

CODE_MUTANTS: tuple[CodeMutant, ...] = tuple(one for family in FAMILIES.values() for one in family)

MUTANTS: tuple[CodeMutant | DataMutant, ...] = (*CODE_MUTANTS, *DATA_MUTANTS)

FAMILY_OF: dict[str, str] = {one.name: family for family, members in FAMILIES.items() for one in members}


def family_of(mutant: CodeMutant | DataMutant) -> str:
    """Its name in tables."""
    return FAMILY_OF[mutant.name] if isinstance(mutant, CodeMutant) else "data"


def chosen(mutants: Sequence[CodeMutant | DataMutant], names: Sequence[str] | None) -> list[CodeMutant | DataMutant]:
    """Those of these names; of a family's name, all of it; all where none is given.

    Raises:
        UserError: nothing is called so.
    """
    families = {one.name: family_of(one) for one in mutants}
    for name in names or ():
        if name not in families and name not in families.values():
            known = [*families, *dict.fromkeys(families.values())]
            close = difflib.get_close_matches(name, known, n=3)
            there = (
                f"close: {', '.join(close)}" if close else f"families: {', '.join(dict.fromkeys(families.values()))}"
            )
            raise UserError(f"--only {name}: no mutant or family is called so; {there}")
    return [one for one in mutants if names is None or one.name in names or families[one.name] in names]
