"""What to change, in a sentence, with the public issue that documents it where there is one."""

import torch

from diagnostics.tracing.events import Event

_BY_CAUSE = {
    "overflow": "compute this in float32 or bfloat16, or scale its operands down before it",
    "underflow": "use an epsilon that is not zero in this dtype, or keep this computation in float32",
    "out_of_domain": "keep the operand inside the domain: clamp it, or add an epsilon before this operator",
    "empty_reduction": "guard the denominator: `.clamp(min=1)`, or leave such batches out (OLMo-core#452)",
    "masked_row": "leave at least one entry of every row unmasked, or skip rows that are wholly masked",
    "bad_data": "check this input where it is read or cached (diffusers#7563) and repair or remove the sample",
    "bad_state": "it was bad before this step: restore the last good checkpoint, and look where it was last written",
    "bad_scalar": "find where this number comes from: a learning rate, a schedule, a loss weight",
    "uninitialized": "initialise this memory, or write to all of it before it is read (transformers#45902)",
    "other_rank": "look at the verdict of the other ranks: one of them sent it",
    "kernel": "take another implementation of this operator, and report it: operands are finite and moderate",
    "unknown": "find what writes to this tensor outside PyTorch",
}


_FILLS = ("fill", "masked_fill", "index_fill", "copy", "where", "index_put", "full")
_WIDE = (torch.float32, torch.float64, torch.bfloat16)


def advice(event: Event, phase: str, exception: str | None, cause: str) -> str:
    """One sentence for this birth."""
    op, dtype, name = event.op, event.values.dtype, event.op.removeprefix("_foreach_").rstrip("_")
    if cause == "bad_data" and event.name is None:
        return "look at where this tensor is made, and give the step's tensors as `batch` to see it named"
    if cause == "kernel" and (event.is_number or name in _FILLS):
        return "this line puts a NaN there: see what makes it do so"
    if cause == "underflow" and name in ("log", "log2", "log10") and dtype in _WIDE:
        return "take the stable form: log_softmax, cross_entropy, logsigmoid, binary_cross_entropy_with_logits"
    diverges = cause == "overflow" and dtype in _WIDE and name not in ("exp", "_to_copy")
    if diverges and phase in ("forward", "loss", "backward", "optimizer"):
        return (
            "no wider type helps much: values have grown beyond this one's range. Lower the learning rate, warm up, "
            "clip gradients, or normalise what this operator is given"
        )
    if phase == "optimizer" and cause == "underflow":
        return (
            "the optimizer's eps is zero in this dtype: keep float32 master weights (bf16 or fp16 autocast instead of "
            "half parameters); an eps that float16 can hold is finite, but distorts the update (pytorch#8860)"
        )
    if phase == "optimizer" and cause == "overflow":
        return "squares of these gradients exceed this dtype: keep parameters and optimizer state in float32"
    if phase == "clip" and cause == "overflow":
        return "the gradients' norm exceeds this dtype: lower the loss scale or take it in float64 (pytorch#46849)"
    if phase == "ema" and cause == "overflow":
        return "average in float32, and cast a copy, never the average itself (ultralytics#24615)"
    if cause == "kernel" and "scaled_dot_product" in op:
        return (
            "a fault of this attention kernel: choose another by torch.nn.attention.sdpa_kernel "
            "(pytorch#196678: torch.backends.cuda.enable_cudnn_sdp(False))"
        )
    if phase == "backward" and cause == "out_of_domain" and exception != "overflow":
        return (
            "the derivative is infinite at this operand, or a branch that torch.where discards has no finite "
            "derivative: make the operand safe before the operator, not its result after it (pytorch#68425)"
        )
    if "softmax" in op and cause == "masked_row":
        return "a row is wholly masked: leave one entry unmasked, or zero such rows after a safe softmax"
    if name == "_to_copy" and cause == "overflow":
        return "the value does not fit this dtype: do not cast here, or use bfloat16 (transformers#9295)"
    if name == "exp" and cause == "overflow":
        return "subtract the maximum before exp, or use the stable form (softmax, logsumexp, softplus, expm1)"
    return _BY_CAUSE[cause]
