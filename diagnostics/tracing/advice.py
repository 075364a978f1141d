"""What to change, in a sentence, with the public issue that documents it where there is one.

A sentence that does not mend its case is a fault: `tests/diagnostics/tracing/fixes` applies each to every case of the
corpus. Where no fix is known, it says so.
"""

from collections.abc import Callable

from diagnostics.tracing.advice_on_domains import (
    COUNTER,
    INFINITE,
    on_domain,
    on_empty,
    on_left_out,
    on_mask,
    on_masked_row,
    on_slope,
    safe_operand,
)
from diagnostics.tracing.advice_on_leaves import on_bad_data, on_bad_scalar, on_bad_state
from diagnostics.tracing.advice_on_ranges import on_exponential, on_overflow, on_underflow
from diagnostics.tracing.birth import Birth

_FILLS = ("fill", "masked_fill", "index_fill", "copy", "where", "index_put", "full")


def advice(birth: Birth) -> str:
    """One sentence for this birth."""
    cause = birth.judgement.cause
    if birth.counts_from_zero:
        return COUNTER
    is_fill = cause == "bad_scalar" and birth.op in _FILLS and "inf" in birth.event.values.value
    if is_fill or (birth.from_mask and cause in ("out_of_domain", "bad_scalar", "kernel", "unknown")):
        return on_mask(birth)
    if birth.from_infinity and cause == "overflow":  # nothing has grown: it was infinite before
        return INFINITE
    return _BY_CAUSE.get(cause, _on_unknown)(birth)


def advice_on_left_out(birth: Birth, discarded: Birth) -> str:
    """One sentence for a backward operator that used what a forward branch had computed and left out.

    Args:
        discarded: the operator in that branch.
    """
    if discarded.judgement.cause == "masked_row":  # no operand can be made safe: the row itself has to be
        return on_masked_row(discarded)
    if discarded.judgement.cause == "overflow" and discarded.op in ("exp", "exp2", "expm1"):
        return on_left_out(birth, on_exponential(discarded))
    return on_left_out(birth, safe_operand(discarded))


def _on_out_of_domain(birth: Birth) -> str:
    if birth.phase == "backward" and birth.judgement.exception == "overflow":
        return on_slope(birth)
    return on_domain(birth)


def _on_uninitialized(birth: Birth) -> str:
    return (
        "take `torch.zeros` in the place of `torch.empty`, or write to all of it before it is read (transformers#45902)"
    )


def _on_other_rank(birth: Birth) -> str:
    return "look at the verdict of the other ranks: one of them sent it"


def _on_kernel(birth: Birth) -> str:
    op = birth.op
    if birth.event.is_number or op in _FILLS:
        return "this line puts a NaN there: see what makes it do so"
    if "batch_norm" in op:
        return on_empty(birth)
    if "scaled_dot_product" in op:
        return (
            "a fault of this attention kernel: choose another by `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` "
            "(pytorch#196678: `torch.backends.cuda.enable_cudnn_sdp(False)`)"
        )
    if op in ("mul", "div", "add", "sub"):
        return (
            "an operand is infinite here, as in 0 * inf: keep it finite where it is made, or leave such elements out "
            "before, by `torch.where(torch.isfinite(x), x, 0.0)`"
        )
    return (
        f"no fix of {op} itself is known, whose operands are finite and moderate: compute the same by torch's own "
        "operators, or another version of this kernel, and report it with the incident's repro.py"
    )


def _on_unknown(birth: Birth) -> str:
    return (
        "something outside PyTorch, such as NumPy or an extension, writes it: keep what that is given inside its "
        "domain, or compute it by torch's operators, where its line is seen"
    )


_BY_CAUSE: dict[str, Callable[[Birth], str]] = {
    "overflow": on_overflow,
    "underflow": on_underflow,
    "out_of_domain": _on_out_of_domain,
    "empty_reduction": on_empty,
    "masked_row": on_masked_row,
    "bad_data": on_bad_data,
    "bad_state": on_bad_state,
    "bad_scalar": on_bad_scalar,
    "uninitialized": _on_uninitialized,
    "other_rank": _on_other_rank,
    "kernel": _on_kernel,
    "unknown": _on_unknown,
}
