"""No statistic waits for the device inside a step: operators that read on the host are refused while it runs."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from diagnostics import LayerStatistics, ParameterStatistics
from diagnostics.statistics.parameters import gradient_norms, total_norm
from diagnostics.tensors import all_finite

# Each of these makes an accelerator finish its work, for a value or for the shape of a result.
READS = ("local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "allclose")
# Indexing by a boolean tensor calls nonzero inside the kernel, so the mode sees only the index.
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class HostReadError(AssertionError):
    pass


class NoHostReads(TorchDispatchMode):
    """Also refuses `tolist` and `numpy`, which on the CPU read memory without any operator."""

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        for method in ("tolist", "numpy", "__array__"):
            self._patch.setattr(Tensor, method, self._refuse)
        return super().__enter__()

    def __exit__(self, *exception):
        self._patch.undo()
        return super().__exit__(*exception)

    @staticmethod
    def _refuse(tensor, *args, **kwargs):
        raise HostReadError("read on the host")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.lstrip("_").startswith(READS):
            raise HostReadError(str(func))
        if name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise HostReadError(f"{func} by a mask")
        if name in ("copy_", "_to_copy"):
            device = (kwargs or {}).get("device")
            if name == "_to_copy" and device is not None and torch.device(device) != args[0].device:
                raise HostReadError(f"{func} to {device}")
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.act = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.conv(self.norm(x)))


class Small(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.conv_in, self.block, self.head = nn.Conv2d(2, 4, 1), Block(), nn.Linear(4, 1)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        h = self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_recorded_step_reads_nothing(dtype: torch.dtype, reentrant: bool | None):
    model = Small(reentrant).to(dtype)
    layers, parameters = LayerStatistics(model), ParameterStatistics(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    x = torch.ones(2, 2, 3, 3, dtype=dtype)
    with NoHostReads(), layers.recording():
        model(x).float().square().mean().backward()
        norm = total_norm(gradient_norms(dict(model.named_parameters())).values())
        finite = all_finite([p.grad for p in model.parameters() if p.grad is not None])
        parameters.before_step()
        optimizer.step()
        parameters.after_step()
    assert norm.isfinite() and finite
    assert len(layers.collect()) == 5
    unknown = [name for name, record in parameters.collect().items() if record.update_ratio is None]
    assert unknown == ["block.norm.bias"]  # zero before the step


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.sum().tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.to("meta"),
        lambda x: torch.where(x > 0),
    ],
)
def test_the_proof_would_notice(read):
    with NoHostReads(), pytest.raises(HostReadError):
        read(torch.ones(3))
