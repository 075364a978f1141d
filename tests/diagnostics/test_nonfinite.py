"""Bad state and data, what is no finding, and what the search leaves behind."""

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, NonFiniteFinding, locate_first_nonfinite
from diagnostics.nonfinite import all_finite
from tests.diagnostics.test_faults import Attention, B, Lambda, data, facts, locate, one_large, one_zero

NAN, INF = float("nan"), float("inf")


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


class TestState:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_bad_parameter_comes_before_everything(self, value: float):
        model = two_layers()
        with torch.no_grad():
            model[1].weight[2, 1] = value
        found = locate(model, one_large(NAN), x=one_large(NAN))
        assert facts(found) == ("state", "1.weight", str(value), ())
        assert "parameter 1.weight was already" in str(found)

    def test_nan_in_a_buffer(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        model[1].running_var[0] = NAN
        assert facts(locate(model, data())) == ("state", "1.running_var", "nan", ())

    @pytest.mark.parametrize("value", [INF, -INF])
    def test_infinite_buffer_that_does_harm(self, value: float):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
        model[1].running_mean.copy_(torch.tensor([value, 0.1, 0.2, 0.3]))
        assert facts(locate(model, data())) == ("state", "1.running_mean", str(value), ())

    def test_infinite_buffer_that_does_none(self):
        model = nn.Sequential(nn.Linear(4, 4))
        model.register_buffer("least_so_far", torch.tensor(INF))
        assert locate(model, data()) is None

    def test_causal_mask_in_a_buffer_is_not_blamed_for_an_overflow(self):
        class Masked(Attention):
            def __init__(self) -> None:
                super().__init__(gain=1e30)
                self.register_buffer("mask", torch.full((5, 5), -INF).triu(1))

            def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
                return super().forward(x * 1e10, self.mask)

        torch.manual_seed(0)
        assert facts(locate(nn.Sequential(nn.Linear(4, 4), Masked()), torch.ones(B, 5, 4)))[:2] == ("forward", "1")


class TestData:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_bad_sample_of_a_named_input(self, value: float):
        x = one_large(value)
        found = locate(two_layers(), x, x=x)
        assert facts(found) == ("data", "x", str(value), (1,))
        assert "input x holds" in str(found)

    def test_input_made_bad_before_the_model(self):
        x = one_large(3e38)
        assert facts(locate(two_layers(), x * 10, x=x)) == ("data", "Sequential", "inf", (1,))

    def test_bad_target_that_only_the_loss_sees(self):
        target = one_large(NAN)
        found = locate(two_layers(), data(), loss=lambda y: (y - target).square().mean(1), x=data(), target=target)
        assert facts(found) == ("data", "target", "nan", (1,))

    def test_bad_padding_that_is_masked_is_no_finding(self):
        x = one_large(NAN)
        model = nn.Sequential(Lambda(lambda x: torch.where(x.isnan(), torch.zeros_like(x), x)), nn.Linear(4, 4))
        assert locate(model, x, x=x) is None

    def test_module_is_named_though_an_unused_input_is_bad(self):
        model = nn.Sequential(nn.Linear(4, 4), Lambda(lambda x: x.abs() * 3e38 * 1e3))
        assert facts(locate(model, data(), unused=one_large(NAN)))[:2] == ("forward", "1")


class TestBenign:
    def test_healthy(self):
        assert locate(two_layers(), data()) is None

    def test_mask_as_keyword_and_masked_scores(self):
        mask = torch.full((5, 5), -INF).triu(1)
        attention = Attention()

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = attention

            def forward(self, x: Tensor) -> Tensor:
                return self.attention(x, mask=mask)

        assert locate(Model(), torch.ones(B, 5, 4), mask=mask) is None

    def test_module_that_returns_masked_scores_is_blamed_for_nothing(self):
        scores = Lambda(lambda x: (x @ x.transpose(1, 2)).masked_fill(torch.ones(5, 5).triu(1).bool(), -INF))
        x = torch.linspace(0, 1, B * 5 * 4).reshape(B, 5, 4)
        head = nn.Sequential(scores, nn.Softmax(-1), nn.Linear(5, 4))
        assert locate(head, x) is None
        broken = nn.Sequential(scores, nn.Softmax(-1), nn.Linear(5, 4), Lambda(lambda x: x.abs() * 3e38 * 1e3))
        assert facts(locate(broken, x)) == ("forward", "3", "inf", (0, 1, 2))

    def test_fully_masked_row_is_the_attention_s_not_the_mask_s(self):
        mask = torch.zeros(B, 5, 5)
        mask[1, 2] = -INF
        assert facts(locate(Attention(), torch.ones(B, 5, 4), mask, mask=mask)) == ("forward", "Attention", "nan", (1,))

    def test_infinite_gradient_that_reaches_no_leaf(self):
        """sqrt'(0) is inf in the backward pass, but nothing before it learns."""
        model = nn.Sequential(Lambda(torch.sqrt), nn.Linear(4, 4))
        assert locate(model, one_zero(data())) is None
        asked = one_zero(data()).requires_grad_()
        assert facts(locate(model, asked))[:2] == ("backward", "0")

    def test_module_without_tensors(self):
        class Settings(nn.Module):
            def forward(self, note: str) -> dict[str, object]:
                return {"note": note, "count": torch.arange(3)}

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.settings, self.out = Settings(), nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                self.settings("text")
                return self.out(x)

        assert locate(Model(), data()) is None


class TestRepeatedModules:
    def test_second_of_three_calls_has_the_bad_backward(self):
        """The module's other calls have good gradients; the fault is in one call of its square root."""
        root = Lambda(lambda x: x.abs().sqrt())

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.root, self.head = nn.Linear(4, 4), root, nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                h = self.stem(x).abs() + 1
                return self.head(self.root(h) + self.root(h - h.detach()) + self.root(h + 2))

        torch.manual_seed(0)
        assert facts(locate(Model(), data())) == ("backward", "root", "inf", (0, 1, 2))

    def test_branch_of_a_residual_stream_is_told_from_the_other(self):
        """Both consumers of the stream give a gradient to the same tensor; only one is bad."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.good, self.bad = nn.Linear(4, 4), nn.Linear(4, 4), Lambda(lambda x: x.square().sqrt())

            def forward(self, x: Tensor) -> Tensor:
                h = self.stem(x)
                return self.good(h) + self.bad(h) + h

        model = Model()
        nn.init.zeros_(model.stem.weight)
        nn.init.zeros_(model.stem.bias)
        assert facts(locate(model, data()))[:2] == ("backward", "bad")

    def test_finite_shares_that_overflow_in_a_parameter_s_sum(self):
        model = nn.Sequential(nn.Linear(4, 4, bias=False))
        x = torch.full((1, 4), 2e38)

        def forward_backward() -> Tensor:
            for _ in range(2):
                model(x).sum().backward()
            return torch.zeros(())

        found = locate_first_nonfinite(model, forward_backward)
        assert found is not None
        assert (found.phase, found.place, found.kind, found.samples) == ("backward", "0", "gradient of weight", ())


def test_compiled_model_is_searched_eagerly():
    """Backend `eager` needs no C++ compiler."""
    bare = nn.Sequential(nn.Linear(4, 4), Lambda(lambda x: x.abs() * 3e38 * 1e3))
    model = torch.compile(bare, backend="eager")
    model(data())
    assert facts(locate(model, data())) == ("forward", "1", "inf", (0, 1, 2))


class TestLeftBehind:
    def test_buffers_gradients_and_randomness(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        model[0].requires_grad_(False)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        state = torch.get_rng_state()
        assert locate(model, data()) is None
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        assert torch.equal(torch.get_rng_state(), state)
        assert model[0].weight.grad is None
        assert model[2].weight.grad is not None

    def test_exception_leaves_no_hook_and_no_changed_buffer(self):
        model = nn.Sequential(nn.BatchNorm1d(4), Lambda(lambda x: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            locate(model, data())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert model[0].num_batches_tracked == 0
        assert torch.equal(model[0].running_mean, torch.zeros(4))

    def test_exception_that_the_model_catches(self):
        class Careful(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fragile = nn.Sequential(nn.Linear(4, 4), Lambda(lambda x: x.view(7, 7)))
                self.out = Lambda(lambda x: x.abs() * 3e38 * 1e3)

            def forward(self, x: Tensor) -> Tensor:
                try:
                    return self.fragile(x)
                except RuntimeError:
                    return self.out(self.fragile[0](x) + 1)

        assert facts(locate(Careful(), data())) == ("forward", "out", "inf", (0, 1, 2))

    def test_two_searches_agree(self):
        model, x = two_layers(), one_large(3e38)
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        assert locate(model, x) == locate(model, x)


class TestFinding:
    def test_says_what_a_reader_needs(self):
        finding = NonFiniteFinding("forward", "mid.attn", "Attention", "inf", (1,), "float16", 3.1e4, 7)
        assert str(finding) == (
            "values became inf first in the forward pass of mid.attn (Attention); float16, 7 values, "
            "largest input 3.1e+04 (limit 6.55e+04)"
        )
        assert finding.to_json()["samples"] == (1,)

    @pytest.mark.parametrize(
        ("phase", "text"),
        [
            ("state", "Kind net.0 was already nan before the step"),
            ("data", "Kind net.0 holds nan"),
            ("loss", "the loss became nan while the model's output was finite"),
            ("backward", "the gradient became nan first in the backward pass of net.0"),
        ],
    )
    def test_every_phase_has_its_sentence(self, phase, text: str):
        assert text in str(NonFiniteFinding(phase, "net.0", "Kind", "nan", (), "float32", None, 1))

    def test_largest_input_is_the_largest_finite(self):
        attention = Attention(gain=1e30)
        mask = torch.full((5, 5), -INF).triu(1)
        found = locate(attention, torch.full((B, 5, 4), 1e10), mask)
        assert found is not None
        assert found.largest_input == pytest.approx(1e10)

    def test_error_carries_finding_and_samples(self):
        error = NonFiniteError("message", step=3, finding=None, sample_ids=("a",))
        assert (str(error), error.step, error.sample_ids, error.exit_code) == ("message", 3, ("a",), 1)


class TestAllFinite:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
    def test_every_dtype(self, dtype: torch.dtype):
        good = torch.ones(3, 2, dtype=dtype)
        assert all_finite([good, torch.zeros(0), torch.arange(3), good.new_empty(2, device="meta")])
        for value in (NAN, INF, -INF):
            bad = good.clone()
            bad[1, 1] = value
            assert not all_finite([good, bad])

    def test_largest_finite_values_are_finite(self):
        assert all_finite([torch.full((100,), torch.finfo(dtype).max, dtype=dtype) for dtype in (torch.float32,)])

    def test_no_tensors_and_sparse(self):
        assert all_finite([])
        assert not all_finite([torch.sparse_coo_tensor([[0]], [NAN], (3,), check_invariants=True)])
