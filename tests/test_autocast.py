"""Autocast does to the operator what it does to torch's conv1d: the same dtypes, the same casts, the same refusals."""

from itertools import product

import pytest
import torch
from cases import Case, make_operands
from reference import tolerance, torch_conv1d
from torch.utils._python_dispatch import TorchDispatchMode

import conv1d_ext._ops  # noqa: F401  defines the operators

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.conv1d_ext
CASE = Case(2, 4, 9, 6, 3, padding=(1, 1), groups=2)
LOWER = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128, torch.int64]


@pytest.mark.parametrize("lower", LOWER, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_values_match_torch(dtype, lower):
    operands = make_operands(CASE, dtype)[:3]
    with torch.autocast("cpu", dtype=lower):
        output, expected = ops.conv1d(*operands, **CASE.geometry), torch_conv1d(*operands, **CASE.geometry)
    assert output.dtype == (lower if dtype.itemsize <= 4 else dtype)
    torch.testing.assert_close(output, expected, **tolerance(output.dtype, 8) if dtype != torch.int64 else {})


@pytest.mark.parametrize(("first", "second"), list(product(DTYPES, DTYPES)), ids=str)
def test_mixed_dtypes_are_accepted_or_rejected_as_by_torch(first, second):
    def dtype_of_result(convolve):
        try:
            input, weight = make_operands(CASE, first).input, make_operands(CASE, second).weight
            with torch.autocast("cpu"):
                return convolve(input, weight, **CASE.geometry).dtype
        except RuntimeError:
            return "RuntimeError"

    assert dtype_of_result(ops.conv1d) == dtype_of_result(torch_conv1d)


def test_gradients_have_the_dtypes_of_the_operands_and_match_torch():
    def gradients(convolve):
        operands = make_operands(CASE, requires_grad=True)[:3]
        with torch.autocast("cpu"):
            loss = convolve(*operands, **CASE.geometry).square().sum()
            second = torch.autograd.grad(loss, operands, create_graph=True)  # inside the region as well
        return *second, *torch.autograd.grad(sum(grad.square().sum() for grad in second), operands)

    for grad, expected in zip(gradients(ops.conv1d), gradients(torch_conv1d), strict=True):
        assert grad.dtype == torch.float32
        # Both round to bfloat16, but not in the same places.
        torch.testing.assert_close(grad, expected, rtol=0, atol=0.02 * float(expected.detach().abs().max()))


def test_nested_regions_switch_it_off_and_on_again():
    operands = make_operands(CASE)[:3]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert ops.conv1d(*operands, **CASE.geometry).dtype == torch.float32
            with torch.autocast("cpu", dtype=torch.float16):
                assert ops.conv1d(*operands, **CASE.geometry).dtype == torch.float16
        assert ops.conv1d(*operands, **CASE.geometry).dtype == torch.bfloat16
    assert ops.conv1d(*operands, **CASE.geometry).dtype == torch.float32


def test_the_cast_of_a_parameter_is_cached_within_a_region():
    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._to_copy.default
            return function(*args, **(kwargs or {}))

    input, weight, _, _ = make_operands(CASE)
    weight.requires_grad_()
    with Casts() as casts, torch.autocast("cpu"):
        for _ in range(3):
            ops.conv1d(input, weight, **CASE.geometry)
    assert casts.count == 3 + 1  # each time the input, once the weight


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_is_registered_for(device):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("conv1d_ext::conv1d", f"Autocast{device}")
