"""Run the corpus under `Watch`, and under the tools of others."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from shadowlab.bench.listing import chosen
from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.corpus import CORPUS
from shadowlab.bench.silent.ranks import try_on_ranks
from shadowlab.bench.silent.report import CaseResult, SilentReport, ToolReport
from shadowlab.bench.silent.score import judged
from shadowlab.bench.silent.tools import PEERS, WATCH, Tool
from shadowlab.bench.silent.trial import Trial, tried

_LIBRARIES = {"lightning": "lightning", "trainer": "transformers"}


def run_silent(
    names: Sequence[str] | None = None,
    peers: bool = False,
    on_case: Callable[[str], None] = lambda line: None,
    *,
    corpus: Sequence[Case] | None = None,
) -> SilentReport:
    """Run cases, each from the beginning for every tool, and score them.

    Args:
        names: of the cases; all by default.
        peers: whether to run the other tools, too.
        on_case: gets a line as each case begins.
        corpus: instead of `CORPUS`; loops of two processes must be of that.

    Raises:
        UserError: no case has such a name, or a process failed.
    """
    cases = chosen(CORPUS if corpus is None else corpus, names, "case")
    missing = {name for name in _LIBRARIES.values() if find_spec(name) is None}
    left_out = {case.name: _LIBRARIES[case.host] for case in cases if _LIBRARIES.get(case.host) in missing}
    cases = [case for case in cases if case.name not in left_out]
    tools = [WATCH, *(PEERS if peers else ())]
    return SilentReport(tuple(_report(tool, cases, on_case) for tool in tools), left_out)


def _report(tool: Tool, cases: Sequence[Case], on_case: Callable[[str], None]) -> ToolReport:
    if tool.version is None:
        return ToolReport(tool.name, None, "not installed: pip install 'shadowlab[bench]'", ())
    trials: dict[str, Trial] = {}
    for case in cases:
        if case.host != "ddp":
            on_case(f"{tool.name}: {case.name}")
            trials[case.name] = tried(case, tool)
    together = [case for case in cases if case.host == "ddp"]
    if together:
        on_case(f"{tool.name}: {len(together)} cases on two ranks")
        trials |= dict(zip((case.name for case in together), try_on_ranks(together, tool), strict=True))
    results = (
        CaseResult(case, judged(case, trials[case.name], any_rule=tool is not WATCH), trials[case.name].seconds)
        for case in cases
    )
    return ToolReport(tool.name, tool.version, None, tuple(results))
