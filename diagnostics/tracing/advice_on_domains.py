"""Advice where an operand lies outside an operator's domain or on its pole, where a row is masked or nothing is left
to average. Code in it is what one writes: the operand is made safe before the operator, never its result after it."""

from diagnostics.tracing.birth import Birth, method, number

_LOGARITHMS = ("log", "log2", "log10")
_QUOTIENTS = ("div", "true_divide", "reciprocal", "remainder", "fmod", "addcdiv", "floor_divide")
_MEANS = ("mean", "nanmean", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div")
_ROOTS = {"sqrt": "torch.sqrt({})", "rsqrt": "torch.rsqrt({})"}
_INSIDE_ONE = ("acos", "asin", "atanh", "erfinv")
_WITH_POLES = ("norm", "std", "var", "dist", "prod", "inverse", "solve", "det", "angle", "cholesky", "qr", "hypot")
_LINEAR_ALGEBRA = ("inv", "inverse", "solve", "det", "slogdet", "cholesky", "lu", "pinv", "triangular_solve", "lstsq")
INFINITE = (
    "0 * inf has no value: one factor is infinite, so keep it finite where it is made, or leave such elements out "
    "before the product by `torch.where(torch.isfinite(x), x, 0.0)`"
)
COUNTER = (
    "the denominator is 0 because a count is 0, as in `1 - beta ** step` at step 0, and an epsilon does not help: "
    "count this step before the division, and restore the count with the other states (a lost step counter starts at "
    "0)"
)
SOFTMAX = "subtract the maximum before exp: `torch.softmax(x, -1)` in the place of exp(x) / sum(exp(x))"
_FINITE_MASK = "a large finite number, as in `scores.masked_fill(mask, {})`"
_LEFT_OUT = (
    "a branch that torch.where leaves out is still differentiated, so make the operand safe before the operator, not "
    "its result after it: {} (pytorch#68425)"
)


def on_domain(birth: Birth) -> str:
    """Outside the domain, or on a pole."""
    op = birth.op
    if birth.from_mask:
        return on_mask(birth)
    if birth.phase == "unscale":
        return (
            "the loss scale is 0 after a long run of skipped steps: find the NaN that made the scaler skip "
            "(guided-diffusion#50), and go on with a new `torch.amp.GradScaler()`"
        )
    if op in _MEANS:  # of finite operands they are NaN only where there are none
        return on_empty(birth)
    if "ctc_loss" in op:
        return (
            "no alignment exists where a target is longer than its input: `F.ctc_loss(..., zero_infinity=True)`, or "
            "leave such samples out"
        )
    if birth.phase == "backward" and birth.node:
        return on_slope(birth)
    safe = safe_operand(birth)
    if safe is not None:
        return safe
    if op in ("mul", "mv", "mm", "bmm", "dot", "addmm", "matmul"):
        return INFINITE
    if "weight_norm" in op:
        return (
            "a row of the weight is 0 and has no direction: initialise it before `weight_norm` is put on, as by "
            "`nn.init.normal_(layer.weight)`"
        )
    if any(word in op for word in _LINEAR_ALGEBRA):
        return _on_matrix(birth)
    return (
        f"keep the operand inside the domain of {op}: clamp it before this operator, with a margin to the ends of the "
        "domain, since the derivative is infinite there"
    )


def safe_operand(birth: Birth) -> str | None:
    """What to write in the place of a forward operator's operand; None where nothing is known."""
    op, least, margin = birth.op, birth.least, birth.margin
    if birth.in_torch and not birth.is_library and op in (*_QUOTIENTS, *_LOGARITHMS, "log1p", "sqrt", "rsqrt"):
        return (
            f"{op} of 0 or less inside of a function of torch: keep what you give it, a scale or a probability, above "
            "0 by `.clamp(min=1e-3)`"
        )
    if op in _QUOTIENTS:
        return _on_quotient(birth)
    x = birth.called("self", "x")
    if op in (*_LOGARITHMS, "log1p"):
        stable = stable_logarithm(birth)
        if stable is not None:
            return stable
    if op in _LOGARITHMS:
        return f"keep its operand above 0: `torch.{op}({method(x, f'clamp(min={number(least)})')})`"
    if op == "log1p":
        return f"keep its operand above -1: `torch.log1p({method(x, f'clamp(min=-1 + {number(margin)})')})`"
    if op == "logit":
        return f"keep its operand inside (0, 1): `torch.logit({x}, eps={number(margin)})`"
    if op in _ROOTS:
        return _on_root(birth, x)
    if op in _INSIDE_ONE:
        inside = method(x, f"clamp(-1 + {number(margin)}, 1 - {number(margin)})")
        name = {"erfinv": "torch.erfinv"}.get(op, f"torch.{op}")
        return f"keep its operand inside (-1, 1), where its slope is finite, too: `{name}({inside})`"
    if op == "acosh":
        return f"keep its operand above 1: `torch.acosh({method(x, f'clamp(min=1 + {number(margin)})')})`"
    exponent, base = (birth.judgement.operands.get(name) for name in ("exponent", "self"))
    if op == "pow" and base == 0 and isinstance(exponent, (int, float)) and exponent < 0:
        return (
            f"{exponent:g} is a power of 1 / x: take 1 where the base is 0, `torch.where({x} == 0, 1.0, {x}) ** "
            f"{exponent:g}` (pytorch#68425)"
        )
    if op == "pow":
        return f"keep the base above 0: `{method(x, f'clamp(min={number(least)})')} ** exponent`"
    if op in ("lgamma", "digamma", "polygamma", "xlogy"):
        return f"keep its operand above 0: `.clamp(min={number(least)})` before {op}"
    return None


def stable_logarithm(birth: Birth) -> str | None:
    """The function that is a logarithm and what it is taken of in one; None where that is nothing known."""
    made = birth.making.ops[:6]
    if not made:
        return None
    if "softmax" in made[:3]:
        return "take both in one: `F.log_softmax(logits, -1)`, or `F.cross_entropy` of the logits"
    if "sigmoid" in made[:3]:
        turned = birth.op == "log1p" or made[0] in ("rsub", "sub")
        one = "`F.logsigmoid(-x)` is log(1 - sigmoid(x))" if turned else "`F.logsigmoid(x)` is log(sigmoid(x))"
        return f"take both in one: {one}; of a loss `F.binary_cross_entropy_with_logits`"
    if "exp" in made[:3]:
        if "sum" in made[:2]:
            return "take all in one: `torch.logsumexp(x, -1)` is log(sum(exp(x)))"
        if made[0] == "exp":
            return "leave out both: log(exp(x)) is x, and a sum of such logarithms is a sum of the x"
    if made[0] in ("prod", "cumprod"):
        return "add logarithms rather than multiplying first: `x.log().sum(-1)` in the place of `x.prod(-1).log()`"
    if made[0] in ("erfc", "special_erfc", "special_ndtr"):
        return "take both in one: `torch.special.log_ndtr(x)` is the logarithm of the normal distribution function"
    return None


def _on_root(birth: Birth, x: str) -> str:
    if birth.phase == "optimizer" and "grad_avg" in birth.code:
        return (
            "RMSprop(centered=True) takes the root of E[g^2] - E[g]^2, which rounding makes negative: use "
            "`centered=False`"
        )
    if birth.phase == "optimizer" and birth.is_library:
        return (
            "this optimizer state is a sum of squares and yet negative, as no update leaves it: restore the last "
            "good checkpoint, or start the state of this parameter again by `optimizer.state.pop(parameter)` "
            "(bitsandbytes#152)"
        )
    safe = method(x, f"clamp(min={number(birth.least)})")
    return f"keep its operand above 0, where its slope is finite, too: `{_ROOTS[birth.op].format(safe)}`"


def _on_quotient(birth: Birth) -> str:
    event, phase, made = birth.event, birth.phase, birth.making
    if "exp" in made.ops[:3] and "sum" in made.ops[:2]:
        return SOFTMAX
    d = birth.called("self" if birth.op == "reciprocal" else "other", "d")
    d = d if len(d) <= 24 else "d"
    if phase == "clip" and event.values.value != "nan":
        return (
            "the gradients are all 0: take `torch.nn.utils.clip_grad_norm_`, whose factor is at most 1 and whose "
            "denominator is the norm + 1e-6"
        )
    if phase == "optimizer" and birth.is_library and "bias_correction" not in birth.code:
        return "give this optimizer an eps that is not 0, such as `eps=1e-8`"
    if phase in ("optimizer", "ema") and made.is_single and made.counts_steps:
        return COUNTER
    if made.is_number and phase in ("data", "forward", "loss", "backward"):
        return f"the denominator is a count or a number that is 0: divide by `max({d}, 1)` (OLMo-core#452)"
    if any(word in birth.line for word in ("cov(", "corrcoef(")):
        return "one observation has no covariance with n - 1 in the denominator: `torch.cov(..., correction=0)`"
    if made.is_count:
        return f"the denominator counts nothing: `{method(d, 'clamp(min=1)')}` (OLMo-core#452)"
    if made.has_slope and "sqrt" in made.ops[:2]:
        return (
            "the denominator is the root of 0, whose slope is infinite as well: keep what is below the root above 0, "
            f"`n / torch.sqrt(v.clamp(min={number(birth.least)}))`"
        )
    whole = f"torch.where({d} == 0, 1.0, {d})"
    is_nan = event.values.value == "nan"
    poles = {*_LOGARITHMS, "sqrt", "rsqrt", "reciprocal"} if is_nan else {*_LOGARITHMS}
    if birth.after & poles:
        least = number(birth.least)
        return (
            f"what follows has a pole at 0 itself, so do not leave a 0 there but add to both: `(n + {least}) / ({d} + "
            f"{least})`"
        )
    if is_nan:
        return f"0/0: divide by 1 where the denominator is 0, which leaves a 0 there: `n / {whole}`"
    return (
        f"divide by 1 where the denominator is 0: `n / {whole}`, since a torch.where after the division leaves a NaN "
        "gradient (pytorch#68425)"
    )


def _on_matrix(birth: Birth) -> str:
    return (
        "the matrix is singular: add a small multiple of the identity, as in `A + 1e-4 * torch.eye(n)`, or take "
        "`torch.linalg.pinv`"
    )


def on_slope(birth: Birth) -> str:
    """The derivative is infinite, or 0/0, where the function itself is finite; by what is differentiated."""
    least, margin, node = number(birth.least), number(birth.margin), birth.node
    if "svd" in node or "eig" in node:
        return (
            "singular vectors and eigenvectors have no derivative where two of their values are equal: take the "
            "values alone, or part them by a little noise, as in `A + 1e-3 * torch.randn_like(A)`"
        )
    if "logsumexp" in node or "logaddexp" in node or "logcumsumexp" in node or "softmax" in node:
        return on_masked_row(birth)
    if "atan2" in node:
        return (
            "the direction of (0, 0) has no derivative: give it another point before, as in `torch.atan2(y, "
            "torch.where((x == 0) & (y == 0), 1.0, x))`"
        )
    known = {
        "sqrt": f"`torch.sqrt(x.clamp(min={least}))`",
        "rsqrt": f"`torch.rsqrt(x.clamp(min={least}))`",
        "pow": f"`x.clamp(min={least}) ** exponent`",
        "log": f"`torch.log(x.clamp(min={least}))`",
        "log2": f"`torch.log2(x.clamp(min={least}))`",
        "log10": f"`torch.log10(x.clamp(min={least}))`",
        "hypot": f"`torch.hypot(x.abs() + {least}, y)`",
        "div": "`n / torch.where(d == 0, 1.0, d)`",
        "reciprocal": "`1 / torch.where(d == 0, 1.0, d)`",
    }
    known |= {name: f"`torch.{name}(x.clamp(-1 + {margin}, 1 - {margin}))`" for name in _INSIDE_ONE}
    if node in known:
        return (
            f"{node} has no finite slope here, and a torch.where after it does not help: make its operand safe before "
            f"it, {known[node]} (pytorch#68425)"
        )
    if birth.op in _QUOTIENTS and not any(word in node for word in _WITH_POLES):
        return f"{_on_quotient(birth)}, in the hook or backward function of your own that divides"
    return (
        "the derivative is infinite at this operand, or a branch that torch.where leaves out has no finite "
        "derivative: make the operand safe before the operator, not its result after it (pytorch#68425)"
    )


def on_left_out(birth: Birth, safe: str | None) -> str:
    """A forward branch was left out, and backward used its value: `safe` is the advice on that branch's operator."""
    return _LEFT_OUT.format("`x = torch.where(condition, x, 1.0)`" if safe is None else safe)


def on_masked_row(birth: Birth) -> str:
    """Nothing is left of a row."""
    large = "-1e4" if birth.is_half else "-1e30"
    if (
        "logsumexp" in birth.op + birth.node
        or "logaddexp" in birth.op + birth.node
        or "logcum" in birth.op + birth.node
    ):
        return (
            "states that no path reaches may be masked, but not by -inf, whose logarithm of a sum has no derivative: "
            f"write {large} in its place"
        )
    if birth.judgement.operands.get("row") == "all False":
        return "no key is left for some rows: allow them all, as in `mask | ~mask.any(-1, keepdim=True)`"
    return (
        f"a row is wholly masked: write {_FINITE_MASK.format(large)}, in the place of -inf, or leave one entry "
        "unmasked (`mask[mask.all(-1), 0] = False` of a boolean mask, in which True masks)"
    )


def on_mask(birth: Birth) -> str:
    """What a mask's infinity became where something was computed with it."""
    if birth.op in ("exp", "softmax", "log_softmax", "logsumexp", "logaddexp", "logcumsumexp"):
        return on_masked_row(birth)
    if birth.op in ("sub", "rsub") and birth.event.values.value == "nan":
        return on_masked_row(birth)
    if birth.phase == "backward" and any(word in birth.node for word in ("softmax", "logsumexp", "logaddexp")):
        return on_masked_row(birth)
    if "label_smoothing" in birth.line:
        return (
            "label smoothing asks every class for some probability, masked ones too, whose logarithm is -inf: leave "
            "`label_smoothing` out, or do not mask classes by -inf here"
        )
    return (
        "the -inf of a mask goes into a sum or product, where it masks nothing and a clamp would only hide it: put 0 "
        "in its place right before, after the softmax if there is one, `x.masked_fill(x == -torch.inf, 0.0)`, and "
        "divide a mean by the number of what is left"
    )


def on_empty(birth: Birth) -> str:
    """An average over nothing."""
    op = birth.op
    if op in _MEANS:
        return (
            "nothing is left to average: `error.sum() / max(error.numel(), 1)` in the place of the mean, or leave "
            "such batches out (OLMo-core#452)"
        )
    if op in ("std", "var", "std_mean", "var_mean", "cov", "corrcoef"):
        return (
            f"a deviation of one value is 0/0 with n - 1 in the denominator: `{op.partition('_')[0]}(..., "
            "correction=0)`, or leave such batches out"
        )
    if op.startswith(("nll_loss", "cross_entropy")):
        ignored = birth.judgement.operands.get("ignore_index", -100)
        return (
            'all targets are ignored: `F.cross_entropy(..., reduction="sum")` divided by '
            f"`(target != {ignored}).sum().clamp(min=1)`, or leave such batches out (OLMo-core#452)"
        )
    if "batch_norm" in op:
        return (
            "one value for each channel has no variance: leave a last batch of one sample out (`DataLoader(..., "
            "drop_last=True)`), or take GroupNorm, which knows no batch"
        )
    safe = safe_operand(birth)
    if safe is not None:
        return safe
    return "nothing is left to average: leave such batches out before this operator (OLMo-core#452)"
