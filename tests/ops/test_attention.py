"""Every form of linear attention against the one that reads like the equation, forward and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import ops
from bdh.ops import parallel, reference
from tolerances import CONTROL, SAME, error


def example(T: int, dtype: torch.dtype = torch.float64, B: int = 2, H: int = 2, K: int = 6, D: int = 5):
    generator = torch.Generator().manual_seed(T)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(B, H, T, K), draw(B, T, D), draw(B, H, K, D)


def gradients(outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o) for o in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights))


def test_reference_by_hand() -> None:
    q = torch.tensor([[[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]])
    v = torch.tensor([[[1.0], [10.0], [100.0]]])
    a, rho = reference.linear_attention(q, v)
    # token 1 reads token 0: (3*1 + 4*2) * 1; token 2 also reads token 1: (5*3 + 6*4) * 10 + (5*1 + 6*2) * 1
    assert a.flatten().tolist() == [0.0, 11.0, 407.0]
    assert rho.flatten().tolist() == [531.0, 642.0]
    assert torch.equal(reference.quadratic_attention(q, v), a)


def test_a_text_begins_with_an_empty_memory_by_hand() -> None:
    q, v = torch.ones(1, 1, 4, 1), torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    rho, fresh = torch.full((1, 1, 1, 1), 5.0), torch.tensor([[False, False, True, False]])
    for form in (reference.linear_attention, lambda *args: parallel.chunked(*args[:3], fresh=args[3])):
        a, after = form(q, v, rho, fresh)
        assert a.flatten().tolist() == [5.0, 6.0, 0.0, 100.0]
        assert after.item() == 1100.0


@pytest.mark.parametrize("through_time", [True, False])
@pytest.mark.parametrize("block", [1, 3, 5, 256])
@pytest.mark.parametrize("beginnings", [0.1, 0.5, 1.0])
def test_texts_may_begin_anywhere(
    beginnings: float, block: int, through_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BLOCK", block)
    q, v, rho = example(17)
    fresh = torch.rand(2, 17, generator=torch.Generator().manual_seed(3)) < beginnings
    expected = list(reference.linear_attention(q, v, rho, fresh))
    if through_time:
        got = list(ops.linear_attention(q, v, rho, fresh=fresh))
        pairs = zip(gradients(got, [q, v, rho]), gradients(expected, [q, v, rho]), strict=True)
        assert max(error(mine, theirs) for mine, theirs in pairs) <= SAME[torch.float64]
    else:
        with ops.without_gradient_through_time():
            got = list(ops.linear_attention(q, v, rho, fresh=fresh))
        assert not torch.autograd.grad(got[0].sum(), v, allow_unused=True, retain_graph=True)[0]
    assert max(error(mine, theirs) for mine, theirs in zip(got, expected, strict=True)) <= SAME[torch.float64]
    assert error(ops.linear_attention(q, v, rho)[0], expected[0]) > CONTROL


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("T", [1, 2, 7, 63])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forms_without_state_match(T: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", block)
    q, v, _ = example(T, dtype)
    expected = reference.linear_attention(q, v)[0]
    wanted = gradients([expected], [q, v]) if T > 1 else None
    for backend in ("reference", "dense", "chunked", "auto"):
        got = ops.attention_read(q, v, backend=backend)
        assert error(got, expected) <= SAME[dtype]
        if wanted:
            for mine, theirs in zip(gradients([got], [q, v]), wanted, strict=True):
                assert error(mine, theirs) <= SAME[dtype]


@pytest.mark.parametrize("block", [2, 5, 256])
@pytest.mark.parametrize("T", [1, 7, 20])
def test_forms_with_state_match_and_differentiate(T: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", block)
    q, v, rho = example(T)
    expected = list(reference.linear_attention(q, v, rho))
    wanted = gradients(expected, [q, v, rho])
    got = list(ops.linear_attention(q, v, rho))
    for mine, theirs in zip(got + gradients(got, [q, v, rho]), expected + wanted, strict=True):
        assert error(mine, theirs) <= SAME[torch.float64]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_any_split_gives_the_same(lengths: list[int]) -> None:
    q, v, rho = (t.detach() for t in example(sum(lengths)))
    expected, last = reference.linear_attention(q, v, rho)
    reads = []
    for part in torch.arange(sum(lengths)).split(lengths):
        a, rho = ops.linear_attention(q[:, :, part], v[:, part], rho)
        reads.append(a)
    assert error(torch.cat(reads, 2), expected) <= SAME[torch.float64]
    assert error(rho, last) <= SAME[torch.float64]


def test_including_the_present_token_is_caught() -> None:
    q, v, _ = example(7)
    inclusive = (q @ q.mT).tril(0) @ v[:, None]
    assert error(inclusive, reference.linear_attention(q, v)[0]) > CONTROL


@pytest.mark.parametrize("T", [1, 5])
def test_state_is_touched_only_by_its_owner(T: int) -> None:
    q, v, rho = (t.detach() for t in example(T))
    before = rho.clone()
    _, kept = ops.linear_attention(q, v, rho)
    assert torch.equal(rho, before)
    _, reused = ops.linear_attention(q, v, rho, owns_rho=True)
    assert reused.data_ptr() == rho.data_ptr()
    assert torch.equal(kept, reused)


def test_half_precision_sums_in_float32() -> None:
    q, v, _ = (t.detach() for t in example(5, torch.bfloat16))
    a, rho = ops.linear_attention(q, v)
    assert a.dtype == torch.bfloat16
    assert rho.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, under_autocast = ops.linear_attention(q, v)
    assert torch.equal(rho, under_autocast)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
def test_a_state_stored_in_half_is_rounded_once_per_call(
    dtype: torch.dtype, T: int, backend: ops.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 1)  # a sum in half precision would round 40 times
    q, v, rho = (t.detach() for t in example(T, dtype))
    a, after = ops.linear_attention(q, v, rho, backend=backend)
    exact_a, exact = reference.linear_attention(q.double(), v.double(), rho.double())
    assert (a.dtype, after.dtype) == (dtype, dtype)
    once = error(exact.to(dtype), exact)
    assert error(after, exact) <= 1.01 * once
    assert error(a, exact_a) <= 1.01 * error(exact_a.to(dtype), exact_a)
    if T > 1:
        in_half = parallel.chunked(q, v, rho)[1]
        assert error(in_half, exact) > 2 * once


@pytest.mark.parametrize("autocast", [False, True])
def test_long_half_precision_reads_sum_in_float32(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 2)
    q, v, _ = (t.detach() for t in example(200, torch.bfloat16))
    exact = reference.quadratic_attention(q.double(), v.double())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = ops.attention_read(q, v, backend="chunked")
        in_half = parallel.chunked(q, v, None)[0]
    assert got.dtype == torch.bfloat16
    once = error(exact.bfloat16(), exact)
    assert error(got, exact) <= 1.01 * once
    assert error(in_half, exact) > 2 * once


@pytest.mark.parametrize(("beyond", "expected"), [(0, "dense"), (1, "chunked")])
def test_auto_takes_the_form_that_is_faster_at_this_length(
    beyond: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    for name in ("dense", "chunked"):
        form = getattr(parallel, name)

        def spy(*args, name=name, form=form, **options):
            taken.append(name)
            return form(*args, **options)

        monkeypatch.setattr(parallel, name, spy)
    q, v, _ = example(ops.CROSSOVER * 5 + beyond)  # D = 5
    ops.attention_read(q, v)
    assert taken == [expected]


def test_the_stateless_form_is_refused_for_state() -> None:
    q, v, rho = example(3)
    with pytest.raises(ValueError, match="keeps no state"):
        ops.linear_attention(q, v, rho, backend="dense")


def test_non_contiguous_input() -> None:
    q, v, rho = (t.detach() for t in example(6))
    strided = q.mT.contiguous().mT
    assert not strided.is_contiguous()
    assert torch.equal(ops.linear_attention(strided, v, rho)[0], ops.linear_attention(q, v, rho)[0])


def test_scores_of_a_text_with_itself_have_the_gradient_of_both_sides() -> None:
    q, _, _ = example(7)
    weight = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (got,) = torch.autograd.grad(parallel.own_scores(q), q, weight)
    (expected,) = torch.autograd.grad(q @ q.mT, q, weight)
    assert error(got, expected) <= SAME[torch.float64]
    assert error(weight @ q * 2, expected) > CONTROL  # as if the gradient of the scores were symmetric
    assert torch.autograd.gradgradcheck(parallel.own_scores, (q[:, :, :3],))


def test_product_is_laid_out_for_the_decoder() -> None:
    x, y = (example(T, D=3)[0].detach()[:, :, :6].requires_grad_() for T in (7, 8))
    got = parallel.product(x, y)
    assert torch.equal(got, x * y)
    assert got.transpose(1, 2).is_contiguous()
    assert not (x * y).transpose(1, 2).is_contiguous()
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mine, theirs in zip(gradients([got * weight], [x, y]), gradients([x * y * weight], [x, y]), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.is_contiguous()
    assert torch.autograd.gradgradcheck(parallel.product, (x[:, :, :2], y[:, :, :2]))
