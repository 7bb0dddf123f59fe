"""Infinity and NaN come out exactly where they do in torch's float64 convolutions.

Those take the zeros of the padding for numbers (an infinite weight beside them makes NaN), and outputs that do not
exist for nothing. For float32 torch has no rule: whether padding makes NaN depends on the algorithm that it chooses.
"""

import pytest
import reference
import torch
from cases import CASES, Case, make_operands
from torch import Tensor

OPS = torch.ops.conv1d_ext
CASES = [case for case in CASES if case.batch > 0]


def spoiled(t: Tensor) -> Tensor:
    """With infinities of both signs and NaN in one element of fifty, but in one at least."""
    t = t.clone()
    at = torch.randint(t.numel(), (max(1, t.numel() // 50),))
    values = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=t.dtype)
    t.view(-1)[at] = values[torch.randint(3, at.shape)]
    return t


def assert_same_places(actual: Tensor, expected: Tensor) -> None:
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(actual), finite)
    torch.testing.assert_close(actual[~finite].to(expected.dtype), expected[~finite], rtol=0, atol=0, equal_nan=True)


def check_places(case: Case, spoil: str, dtype: torch.dtype) -> None:
    operands = make_operands(case, dtype)
    operands = operands._replace(**{spoil: spoiled(getattr(operands, spoil))})
    x, w, bias, grad = operands
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    output = reference.torch_conv1d(exact_x, exact_w, None if bias is None else bias.double(), **case.geometry)
    grad_input, grad_weight = torch.autograd.grad(output, (exact_x, exact_w), grad.double())

    assert_same_places(OPS.conv1d(x, w, bias, **case.geometry), output.detach())
    assert_same_places(OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry), grad_input)
    assert_same_places(OPS.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry), grad_weight)


@pytest.mark.parametrize("spoil", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_appear_where_torch_has_them(case: Case, spoil: str) -> None:
    check_places(case, spoil, torch.float32)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_appear_where_torch_has_them_on_every_isa(case: Case, dtype: torch.dtype, isa: str) -> None:
    for spoil in ("input", "weight", "grad_output"):
        check_places(case, spoil, dtype)


@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_appear_there_in_any_memory_layout(layout: str) -> None:
    case = Case(2, 6, 20, 4, 5, stride=2, padding=(3, 2), groups=2)
    _, w, _, grad = make_operands(case, torch.float64)
    w = spoiled(w)
    expected = OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry)
    w = w.transpose(1, 2).contiguous().transpose(1, 2) if layout == "transposed" else w.repeat(1, 1, 2)[..., :5]
    actual = OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_denormals_are_numbers(dtype: torch.dtype, isa: str) -> None:
    """Products and sums below the smallest normal number are kept, as torch keeps them."""
    tiny = torch.finfo(dtype).tiny
    x, w = torch.full((1, 3, 40), tiny, dtype=dtype), torch.full((2, 3, 3), 0.125, dtype=dtype)
    output = OPS.conv1d(x, w)
    assert torch.equal(output, torch.full_like(output, 9 * tiny / 8))
    assert torch.equal(OPS.conv1d(x / 4, w / 2), torch.full_like(output, 9 * tiny / 64))
    grad_input = OPS.conv1d_backward_input(output / 16, w, 40)
    assert torch.equal(grad_input, reference.conv1d_backward_input(output / 16, w, 40).to(dtype))


@pytest.mark.parametrize("positions", [298, 299])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_infinity_stays_with_the_taps_that_meet_it(dtype: torch.dtype, positions: int, isa: str) -> None:
    """Of an odd number of positions, too, where pairs of them are multiplied at once."""
    x, grad = torch.ones(1, 32, positions + 2, dtype=dtype), torch.ones(1, 64, positions, dtype=dtype)
    x[..., -1] = torch.inf
    grad_weight = OPS.conv1d_backward_weight(grad, x, 3)
    assert torch.equal(grad_weight[..., :2], torch.full_like(grad_weight[..., :2], positions))
    assert (grad_weight[..., 2] == torch.inf).all()
