"""The operators made of torch's own, which serve what the kernels do not cover: they compute the same."""

import pytest
import reference
import torch
from cases import CASES, Case, make_operands

import conv1d_ext._ops  # noqa: F401  defines the operators

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.conv1d_ext


def call_fallback(name, *args):
    """What a device without kernels of its own would run, here on the CPU."""
    return getattr(ops, name).default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle(case, dtype):
    input, weight, bias, grad_output = make_operands(case, dtype)
    calls = {
        "conv1d": (input, weight, bias),
        "conv1d_backward_input": (grad_output, weight, case.in_length),
        "conv1d_backward_weight": (grad_output, input, case.kernel_size),
    }
    for name, args in calls.items():
        expected = getattr(reference, name)(*args, **case.geometry)
        reference.assert_matches(call_fallback(name, *args, *case.geometry.values()), expected, case.terms(name))
    expected = reference.conv1d_backward_bias(grad_output)
    reference.assert_matches(
        call_fallback("conv1d_backward_bias", grad_output), expected, case.terms("conv1d_backward_bias")
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8], ids=str)
def test_integers_match_torch(dtype, padding_mode):
    case = Case(2, 4, 9, 6, 3, padding=(2, 1), groups=2, padding_mode=padding_mode)
    operands = [(10 * t).to(dtype) for t in make_operands(case)[:3]]
    assert torch.equal(ops.conv1d(*operands, **case.geometry), reference.torch_conv1d(*operands, **case.geometry))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex32_and_its_gradients_match_torch():
    case = Case(2, 4, 9, 6, 3, padding=(1, 1), groups=2)

    def results(convolve):
        operands = [t.to(torch.complex32).requires_grad_() for t in make_operands(case, torch.complex64)[:3]]
        output = convolve(*operands)
        grads = torch.autograd.grad(output, operands, torch.ones_like(output))
        return [t.to(torch.complex64) for t in (output, *grads)]

    expected = results(lambda *operands: torch.conv1d(*operands, padding=1, groups=2))
    for actual, wanted in zip(results(lambda *operands: ops.conv1d(*operands, **case.geometry)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn], ids=str)
def test_rejects_what_torch_rejects(dtype):
    operands = [t.to(dtype) for t in make_operands(Case(2, 4, 9, 6, 3))[:3]]
    with pytest.raises(NotImplementedError, match="not implemented for"):
        ops.conv1d(*operands)
