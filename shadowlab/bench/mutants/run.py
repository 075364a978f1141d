"""Run mutants, several at a time."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from shadowlab.bench.mutants.corpus import MUTANTS, chosen, family_of
from shadowlab.bench.mutants.mutant import STAGES, CodeMutant, DataMutant, Stage
from shadowlab.bench.mutants.report import MutantReport
from shadowlab.bench.mutants.trial import Bench, MutantResult
from shadowlab.errors import UserError

_SECONDS = 600.0  # of one command


def run_mutants(
    names: Sequence[str] | None = None,
    *,
    stages: Sequence[Stage] = STAGES,
    processes: int = 1,
    on_result: Callable[[MutantResult], None] | None = None,
    mutants: Sequence[CodeMutant | DataMutant] = MUTANTS,
    with_unmutated: bool | None = None,
) -> MutantReport:
    """Put each fault into a copy, and see which stage stops it.

    Args:
        names: of mutants or of families; None: all.
        stages: those that are run, in their own order; each mutant meets those that could know it.
        processes: mutants at a time, each in a copy of its own.
        on_result: called after each mutant, and after the unmutated copy.
        with_unmutated: whether the copy as it is goes through the stages, too; None: where all mutants run.

    Raises:
        UserError: a name is unknown, or the code is not what a mutant was written for.
    """
    wanted = chosen(mutants, names)
    free: SimpleQueue[Bench] = SimpleQueue()
    benches: list[Bench] = []
    with tempfile.TemporaryDirectory(prefix="shadowlab-mutants-") as root, ThreadPoolExecutor(processes) as pool:
        try:
            for number in range(processes):
                folder = Path(root) / str(number)
                folder.mkdir()
                benches.append(Bench(folder, stages, _SECONDS))
                free.put(benches[-1])

            def one(mutant: CodeMutant | DataMutant | None) -> MutantResult:
                bench = free.get()
                try:
                    result = _through(bench, mutant)
                finally:
                    free.put(bench)
                if on_result is not None:
                    on_result(result)
                return result

            first = names is None if with_unmutated is None else with_unmutated
            unmutated = pool.submit(one, None) if first else None
            futures = [pool.submit(one, mutant) for mutant in wanted if _is_run(mutant, stages)]
            try:
                results = tuple(future.result() for future in futures)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return MutantReport(None if unmutated is None else unmutated.result(), results)
        finally:
            for bench in benches:
                bench.close()


def checked_stages(names: Sequence[str] | None) -> tuple[Stage, ...]:
    """Stages by their names; all of them for None.

    Raises:
        UserError: one is called otherwise.
    """
    if unknown := [name for name in names or () if name not in STAGES]:
        raise UserError(f"--stages {unknown[0]}: no stage; there are {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if names is None or stage in names)


def _is_run(mutant: CodeMutant | DataMutant, stages: Sequence[Stage]) -> bool:
    own = mutant.stages if isinstance(mutant, CodeMutant) else ("data check",)
    return any(stage in stages for stage in own)


def _through(bench: Bench, mutant: CodeMutant | DataMutant | None) -> MutantResult:
    if mutant is None:
        return bench.unmutated()
    return bench.of_code(mutant, family_of(mutant)) if isinstance(mutant, CodeMutant) else bench.of_data(mutant)
