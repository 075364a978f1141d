"""One sentence or two out of all outcomes: what it was a matter of, and what to do."""

from collections.abc import Sequence

from diagnostics import Verdict
from shadowlab.stages.why.counterfactuals import ALL_FAIL, FINITE, NOT_RUN, OTHER, SAME, SOME_FAIL, Outcome

_MUCH_FARTHER = 3.0


def conclude(verdict: Verdict, outcomes: Sequence[Outcome], *, is_exact: bool) -> str:
    """What the outcomes say together. is_exact: whether the step started from the state before it."""
    ran = [outcome for outcome in outcomes if outcome.result != NOT_RUN]
    if not ran:
        return f"nothing could be repeated; what is known is the verdict: {verdict.fix or verdict.headline()}"
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in ran:
        by_kind.setdefault(outcome.kind, []).append(outcome)
    again = by_kind.get("again")
    if again and again[0].result == FINITE:
        return _not_again(again[0], by_kind, is_exact)
    facts = _facts(verdict, by_kind)
    matter = _matter(verdict, by_kind)
    return f"{'; '.join(facts)}: {matter}" if facts else matter


def _not_again(again: Outcome, by_kind: dict[str, list[Outcome]], is_exact: bool) -> str:
    alone = by_kind.get("operator", [])
    text = f"the step is finite when repeated: {again.meaning}"
    if not is_exact:
        text = f"the step is finite from older weights, and the state before it was not kept: {again.meaning}"
    if alone and alone[0].result == SAME:
        text += "; the operator on its operands fails again, so what made the operands is what differs"
    return text


def _facts(verdict: Verdict, by_kind: dict[str, list[Outcome]]) -> list[str]:
    facts = []
    for kind, name in (("float32", "float32"), ("bfloat16", "bfloat16")):
        facts += [f"{name} is finite" for o in by_kind.get(kind, []) if o.result == FINITE]
        facts += [f"{name} fails as well" for o in by_kind.get(kind, []) if o.result in (SAME, OTHER)]
    facts += [f"{o.name} is finite{_farther(o, by_kind)}" for o in by_kind.get("eps", []) if o.result == FINITE]
    for kind in ("clip", "scale", "attention"):
        facts += [f"{outcome.name} is finite" for outcome in by_kind.get(kind, []) if outcome.result == FINITE]
    for outcome in by_kind.get("samples", []):
        if outcome.result == SOME_FAIL:
            few = outcome.numbers["failing"]
            facts.append(f"only {_few(few)} fail{'s' if len(few) == 1 else ''} alone")
        else:
            facts.append(f"{'every' if outcome.result == ALL_FAIL else 'no'} sample fails alone")
    facts += [f"{o.name} are finite" for o in by_kind.get("weights", []) if o.result == FINITE]
    facts += [f"{o.name} fail, too" for o in by_kind.get("weights", []) if o.result != FINITE]
    facts += [f"with the bad elements at 0 it is {o.result}" for o in by_kind.get("repair", [])]
    return facts


def _matter(verdict: Verdict, by_kind: dict[str, list[Outcome]]) -> str:
    def result(kind: str) -> str | None:
        found = [outcome.result for outcome in by_kind.get(kind, [])]
        return FINITE if FINITE in found else found[0] if found else None

    samples = result("samples")
    if verdict.phase == "state":
        where = "go on from the last good checkpoint" if result("weights") == FINITE else "start from sound weights"
        return f"the state was damaged before the step, the step is innocent; {where}"
    if samples == SOME_FAIL or verdict.phase == "data":
        return "a matter of data: repair or remove what is named (shadowlab data check), the arithmetic is sound"
    if result("attention") == FINITE:
        return "a matter of one attention kernel: choose another (torch.nn.attention.sdpa_kernel), or update torch"
    if result("float32") == FINITE or result("bfloat16") == FINITE:
        sound = any(o.result == FINITE and not _farther(o, by_kind) for o in by_kind.get("eps", []))
        tail = ", or raise --set optimizer.eps" if sound else ""
        fix = "--precision bf16" if result("bfloat16") == FINITE else "--precision fp32"
        older = "; older weights are finite, so look at what grew since" if result("weights") == FINITE else ""
        return f"a matter of precision, not of data; train with {fix}{tail}{older}"
    if result("scale") == FINITE:
        return "a matter of the loss scale"
    if result("eps") == FINITE:
        return "a matter of the optimizer's eps; raise --set optimizer.eps"
    if result("weights") == FINITE:
        return "a matter of the weights as they have become; go on from that checkpoint with a lower learning rate"
    alone = by_kind.get("operator", [])
    if len(alone) > 1 and alone[1].result == FINITE:
        return "the values have outgrown the range of this dtype: look at what made the operands so large"
    if len(alone) > 1 and alone[1].result == SAME and verdict.cause == "underflow":
        return f"an operand was rounded to 0 before the operator saw it: {verdict.fix}"
    if len(alone) > 1 and alone[1].result == SAME:
        return "the operands themselves are at fault, in any precision: look at what made them"
    return f"none of the changes helps; {verdict.fix or 'see the verdict'}"


def _farther(outcome: Outcome, by_kind: dict[str, list[Outcome]]) -> str:
    """Finite is not yet right: where this step moves a weight much farther than float32 does."""
    reference = next((o.numbers["largest_change"] for o in by_kind.get("float32", []) if o.result == FINITE), None)
    if not reference or outcome.numbers["largest_change"] < _MUCH_FARTHER * reference:
        return ""
    return f" but moves a weight {outcome.numbers['largest_change'] / reference:.0f} times as far as float32 does"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
