"""The operators that may be run because a file names them, and what must hold for their arguments.

On the list are torch's own that can make a non-finite number of finite ones and touch nothing but the tensors that
they are given and return: no file, device setting or process is in their reach. Many kernels trust the sizes and
indices in their arguments. Each was called with mutated arguments on memory between guard pages (torch 2.13, CPU); one
that read or wrote outside of it is not here, or has a check of what it trusts.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

Arguments = Mapping[str, Any]  # by their names in the schema

# Also in place (`log_`) and of lists (`_foreach_log`, `_foreach_log_`), and in prims.
_POINTWISE = """
abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min complex
conj_physical copy copysign cos cosh deg2rad digamma div elu erf erfc erfinv exp exp2 expm1 fill floor floor_divide fmax
fmin fmod frac gelu hardshrink hardsigmoid hardswish hardtanh hypot i0 igamma igammac ldexp leaky_relu lerp lgamma log
log10 log1p log2 logaddexp logaddexp2 logit masked_fill maximum minimum mish mul nan_to_num neg nextafter polar
polygamma pow rad2deg reciprocal relu remainder round rsqrt rsub sgn sigmoid sign silu sin sinc sinh softplus softshrink
special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_entr special_erfcx special_i0e
special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py special_zeta sqrt sub tan tanh threshold trunc
where xlogy zero
"""

_OTHERS = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _amp_foreach_non_finite_check_and_unscale_ _amp_update_scale_
_batch_norm_no_update _batch_norm_with_update _cdist_backward _cdist_forward _ctc_loss _fft_c2c _fft_c2r _fft_r2c
_foreach_norm _fused_adagrad_ _fused_adam_ _fused_adamw_ _fused_rms_norm_backward _fused_sgd_ _linalg_det _linalg_eigh
_linalg_slogdet _linalg_solve_ex _linalg_svd _log_softmax _log_softmax_backward_data _native_batch_norm_legit
_native_batch_norm_legit_functional _native_batch_norm_legit_no_training _pdist_forward _prelu_kernel
_prelu_kernel_backward _safe_softmax _scaled_dot_product_cudnn_attention _scaled_dot_product_cudnn_attention_backward
_scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward _softmax
_softmax_backward_data _to_copy _unsafe_view _upsample_nearest_exact1d _upsample_nearest_exact1d_backward
_upsample_nearest_exact2d _upsample_nearest_exact2d_backward _upsample_nearest_exact3d
_upsample_nearest_exact3d_backward _weight_norm_interface adaptive_max_pool2d
adaptive_max_pool3d addbmm addbmm_ addmm addmm_ addmv addmv_
addr addr_ amax amin aminmax arange avg_pool2d avg_pool3d avg_pool3d_backward baddbmm baddbmm_ batch_norm_backward
binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits bmm cat cholesky_inverse
cholesky_solve clone col2im constant_pad_nd convolution convolution_backward cudnn_batch_norm cudnn_batch_norm_backward
cummax cummin cumprod cumprod_ cumsum cumsum_ diagonal_backward dist dot elu_backward embedding
embedding_dense_backward full full_like gather gelu_backward glu_backward grid_sampler_2d grid_sampler_3d
hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward huber_loss huber_loss_backward im2col
index index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_reduce
index_reduce_ index_select kthvalue leaky_relu_backward linalg_cholesky_ex linalg_cross linalg_eig
linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex linalg_lu linalg_lu_factor_ex linalg_matrix_exp
linalg_pinv linalg_qr linalg_solve_triangular linalg_vector_norm linspace log_sigmoid_backward logcumsumexp
logit_backward logspace logsumexp masked_scatter masked_scatter_ masked_scatter_backward max max_pool2d_with_indices
max_pool3d_with_indices mean median min mish_backward mm mse_loss mse_loss_backward multi_margin_loss
multilabel_margin_loss_forward mv nanmedian nansum native_batch_norm native_batch_norm_backward native_dropout
native_dropout_backward native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward
new_full nll_loss2d_backward nll_loss2d_forward nll_loss_forward norm prod put put_ reflection_pad1d reflection_pad2d
reflection_pad3d renorm renorm_ replication_pad1d replication_pad2d replication_pad3d rrelu_with_noise_backward
scalar_tensor scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ select_backward sigmoid_backward
silu_backward slice_backward smooth_l1_loss smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward
softplus_backward softshrink_backward stack std std_mean sum take tanh_backward threshold_backward trace
upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d upsample_bilinear2d_backward upsample_linear1d
upsample_linear1d_backward upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d
upsample_nearest2d_backward upsample_nearest3d upsample_nearest3d_backward upsample_trilinear3d
upsample_trilinear3d_backward var var_mean vdot
"""

# Their results' sizes depend on values, which a rehearsal does not have; their checks bound them.
SIZED_BY_VALUES = ("_ctc_loss",)

_STEMS = frozenset(_POINTWISE.split())
_ELEMENTWISE = frozenset(
    prefix + stem + suffix for prefix in ("", "_foreach_") for stem in _STEMS for suffix in ("", "_")
)
_IN_ATEN = _ELEMENTWISE | frozenset(_OTHERS.split())
_TYPE = re.compile(r"(Optional|List)\[(.*)\]")
_ARGUMENT_TYPES = {"Tensor", "int", "float", "bool", "number", "str", "Device", "Generator"}


def find_operator(name: Any) -> OpOverload:
    """The operator that `str` names so, such as `aten.log.default`.

    Raises:
        ValueError: it is not on the list; one line that names it.
    """
    shown = ascii(name if len(name) <= 80 else f"{name[:77]}...") if isinstance(name, str) else type(name).__name__
    parts = name.split(".", 3) if isinstance(name, str) else []
    found: Any = None
    if len(parts) == 3:
        namespace, packet_name, overload = parts
        listed = {"aten": _IN_ATEN, "prims": _STEMS}.get(namespace, frozenset())
        packet = getattr(getattr(torch.ops, namespace), packet_name, None) if packet_name in listed else None
        is_checked = packet_name in _ELEMENTWISE or not overload.endswith("out")  # no other was tried with an `out`
        if is_checked and isinstance(packet, OpOverloadPacket) and overload in packet.overloads():
            found = getattr(packet, overload)
    if not isinstance(found, OpOverload) or not _is_of_tensors(found):
        raise ValueError(f"names {shown}, which is not on the list of operators that may be run from a file")
    return found


def _is_of_tensors(operator: OpOverload) -> bool:
    """Whether it takes nothing but tensors, numbers and words, and returns tensors; TorchScript's own do not."""
    arguments = [str(argument.type) for argument in operator._schema.arguments]
    results = [str(result.type) for result in operator._schema.returns]
    return (
        all(_kind(text) in _ARGUMENT_TYPES and not ("List" in text and "str" in text) for text in arguments)
        and all(_kind(text) == "Tensor" for text in results)
        and "Tensor" in map(_kind, arguments + results)
    )


def _kind(text: str) -> str:
    """Tensor of `List[Optional[Tensor]]`."""
    while inner := _TYPE.fullmatch(text):
        text = inner[2]
    return text


def objection(operator: OpOverload, arguments: Arguments, largest: int) -> str | None:
    """Why a kernel that believes its arguments must not have these, None where they fit one another.

    Args:
        largest: number of elements that results may have.
    """
    check = _CHECKS.get(operator._schema.name.split("::")[1])
    if check is None:
        return None
    try:
        return check(arguments, largest)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, RuntimeError):
        return "one is of another kind than the operator takes"


def _softmax_backward(a: Arguments, _: int) -> str | None:
    if a["grad_output"].shape != a["output"].shape or not a["output"].numel():
        return "gradient and output differ in shape, or are empty"
    return None


def _batch_norm(a: Arguments, _: int) -> str | None:
    x = a["input"]
    if x.ndim < 2 or not x.numel():
        return "no batch of channels"
    gradient = a.get("grad_out", a.get("grad_output"))
    if gradient is not None and gradient.shape != x.shape:
        return "gradient and input differ in shape"
    saved_may_be_empty = not a.get("train", a.get("update", True))
    for name in ("weight", "bias", "running_mean", "running_var", "save_mean", "save_invstd", "save_var"):
        tensor = a.get(name)
        if tensor is None or (name.startswith("save") and saved_may_be_empty and not tensor.numel()):
            continue
        if tuple(tensor.shape) != (x.shape[1],):
            return f"{name} is not one number a channel"
    if "save_mean" in a and not saved_may_be_empty and a["save_mean"] is None:
        return "no saved mean"
    return None


def _layer_norm_backward(a: Arguments, _: int) -> str | None:
    x, normalized = a["input"], tuple(a["normalized_shape"])
    if not normalized or tuple(x.shape[-len(normalized) :]) != normalized or a["grad_out"].shape != x.shape:
        return "gradient, input and normalised shape differ"
    rows = math.prod(x.shape[: -len(normalized)])
    if any(a[name].numel() != rows for name in ("mean", "rstd") if name in a):
        return "statistics are not one number a row"
    if any(a.get(name) is not None and tuple(a[name].shape) != normalized for name in ("weight", "bias")):
        return "weight or bias differ from the normalised shape"
    return None


def _group_norm(a: Arguments, _: int) -> str | None:
    x, groups, channels = a["input"], a["group"], a["C"]
    sizes = (a["N"], channels, a["HxW"], groups)
    if any(type(size) is not int or size < 1 for size in sizes) or channels % groups:
        return "sizes are no positive numbers, or the groups do not divide the channels"
    if math.prod(sizes[:3]) != x.numel() or tuple(x.shape[:2]) != sizes[:2]:
        return "the sizes are not the input's"
    if "grad_out" in a and a["grad_out"].shape != x.shape:
        return "gradient and input differ in shape"
    if any(a[name].numel() != a["N"] * groups for name in ("mean", "rstd") if name in a):
        return "statistics are not one number a group"
    if any(a.get(name) is not None and a[name].numel() != channels for name in ("weight", "bias")):
        return "weight or bias are not one number a channel"
    return None


def _fused_update(a: Arguments, _: int) -> str | None:
    """Every list has a tensor for each parameter, of its shape and dtype; counters, and what scales, are one number."""
    parameters = a["self"]
    for name, value in a.items():
        if name == "state_steps" or isinstance(value, Tensor):
            numbers = value if isinstance(value, list) else [value]
            if any(t.numel() != 1 for t in numbers) or (name == "state_steps" and len(numbers) != len(parameters)):
                return f"{name} is not one number"
        elif isinstance(value, list):
            may_be_empty = name == "momentum_buffer_list" and a["momentum"] == 0
            may_be_empty |= name == "max_exp_avg_sqs" and not a["amsgrad"]
            if not value and may_be_empty:
                continue
            if len(value) != len(parameters):
                return f"{name} has not one tensor a parameter"
            for one, parameter in zip(value, parameters, strict=True):
                if (one.shape, one.dtype) != (parameter.shape, parameter.dtype):
                    return f"{name} differs from its parameter in shape or dtype"
    return None


def _attention(a: Arguments, _: int) -> str | None:
    q, k, v = a["query"], a["key"], a["value"]
    if not q.ndim == k.ndim == v.ndim == 4 or not q.numel() or not k.numel() or not v.numel():
        return "query, key and value are not (batch, heads, length, features)"
    if not q.shape[:2] == k.shape[:2] == v.shape[:2] or not q.shape[3] == k.shape[3] == v.shape[3]:
        return "query, key and value differ in batch, heads or features"
    if k.shape != v.shape or not q.dtype == k.dtype == v.dtype:
        return "key and value differ in length, or dtypes differ"
    mask, full = a.get("attn_mask", a.get("attn_bias")), (*q.shape[:3], k.shape[2])
    if mask is not None and mask.numel():
        shape = tuple(mask.shape)
        if len(shape) not in (2, 4) or any(s not in (1, f) for s, f in zip(shape[::-1], full[::-1], strict=False)):
            return "the mask does not spread over (batch, heads, queries, keys)"
    if "out" not in a:
        return None
    gradient = a["grad_out" if "grad_out" in a else "grad_out_"]
    if not a["out"].shape == gradient.shape == q.shape:
        return "output, gradient and query differ in shape"
    lse = a["logsumexp"]
    if lse.ndim != 3 or lse.shape[:2] != q.shape[:2] or lse.shape[2] < q.shape[2]:
        return "logsumexp is not one number a query"
    if any(a.get(name) is not None for name in ("cum_seq_q", "cum_seq_k")):
        return "sequences of several lengths"
    return None


def _ctc(a: Arguments, largest: int) -> str | None:
    steps, batch, classes = a["log_probs"].shape
    targets, blank = a["targets"], a["blank"] or 0
    inputs, lengths = (torch.as_tensor(a[name]).reshape(-1).tolist() for name in ("input_lengths", "target_lengths"))
    if not len(inputs) == len(lengths) == batch or not all(type(n) is int for n in [*inputs, *lengths, blank]):
        return "not one input length and target length a sample"
    if not all(0 <= n <= steps for n in inputs) or not 0 <= blank < classes or targets.is_floating_point():
        return "an input length or the blank is out of range"
    is_row_each = targets.ndim == 2 and len(targets) == batch and all(0 <= n <= targets.shape[1] for n in lengths)
    is_joined = targets.ndim == 1 and all(n >= 0 for n in lengths) and sum(lengths) == len(targets)
    if not is_row_each and not is_joined:
        return "the targets are not as long as said"
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        return "a target is no class"
    return None if batch * steps * (2 * max(lengths, default=0) + 1) <= largest else "the result would be too large"


def _weight_norm(a: Arguments, _: int) -> str | None:
    v, g, dim = a["v"], a["g"], a.get("dim") or 0
    if type(dim) is not int or dim not in (0, v.ndim - 1) or not v.numel() or v.dtype != g.dtype:
        return "directions and lengths differ in dtype, or are not along the first or last dimension"
    if tuple(g.shape) != tuple(size if i == dim else 1 for i, size in enumerate(v.shape)):
        return "the lengths are not one number a direction"
    return None


_CHECKS: dict[str, Callable[[Arguments, int], str | None]] = {
    "_ctc_loss": _ctc,
    "_weight_norm_interface": _weight_norm,
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), _softmax_backward),
    **dict.fromkeys((name for name in _IN_ATEN if "batch_norm" in name), _batch_norm),
    **dict.fromkeys(("native_layer_norm_backward", "_fused_rms_norm_backward"), _layer_norm_backward),
    **dict.fromkeys((name for name in _IN_ATEN if "group_norm" in name), _group_norm),
    **dict.fromkeys(
        (name for name in _IN_ATEN if name.startswith("_fused_ad") or name == "_fused_sgd_"), _fused_update
    ),
    **dict.fromkeys((name for name in _IN_ATEN if "scaled_dot_product" in name), _attention),
}
