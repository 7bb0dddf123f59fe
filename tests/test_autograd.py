"""Derivatives of the operators in eager mode: every order, reverse, forward and mixed; what is saved and computed."""

from itertools import product

import pytest
import torch
from cases import CASES, Case, make_operands
from reference import torch_conv1d
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import conv1d_ext._ops  # noqa: F401  defines the operators

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.conv1d_ext
SMALL_CASES = [case for case in CASES if max(*case.input_shape, *case.output_shape, *case.weight_shape) <= 21]
TINY_CASES = [case for case in SMALL_CASES if max(*case.input_shape, *case.output_shape) <= 12]
CASE = Case(2, 4, 9, 6, 3, stride=2, padding=(2, 1), groups=2, padding_mode="reflect")
DTYPES = [torch.float64, torch.complex128]


def functions(case: Case, dtype: torch.dtype) -> dict:
    """The four operators as functions of their tensors, with tensors to call them on."""
    input, weight, bias, grad_output = make_operands(case, dtype, requires_grad=True)
    grad_output.requires_grad_()
    convolve = (lambda *operands: ops.conv1d(*operands, **case.geometry)), (input, weight) + (bias,) * case.bias
    return {
        "conv1d": convolve,
        "conv1d_backward_input": (
            lambda g, w: ops.conv1d_backward_input(g, w, case.in_length, **case.geometry),
            (grad_output, weight),
        ),
        "conv1d_backward_weight": (
            lambda g, x: ops.conv1d_backward_weight(g, x, case.kernel_size, **case.geometry),
            (grad_output, input),
        ),
        "conv1d_backward_bias": (ops.conv1d_backward_bias, (grad_output,)),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_first_derivatives_match_finite_differences(case, dtype):
    function, operands = functions(case, dtype)["conv1d"]
    assert gradcheck(function, operands, fast_mode=True, check_forward_ad=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", functions(CASE, torch.float64))
def test_derivatives_of_every_operator_match_finite_differences(op, dtype):
    """Exhaustively, and also in batches; second derivatives by reverse over reverse and forward over reverse."""
    function, operands = functions(CASE, dtype)[op]
    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, operands, check_forward_ad=True, **batched, fast_mode=dtype.is_complex)
    assert gradgradcheck(function, operands, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASE, *TINY_CASES], ids=str)
def test_derivatives_up_to_the_third_match_torch(case, dtype):
    def derivatives(convolve):
        operands = [t for t in make_operands(case, dtype, requires_grad=True)[:3] if t is not None]
        results, value = [], convolve(*operands, **case.geometry).abs().pow(3).sum()
        for order in range(3):
            grads = torch.autograd.grad(value, operands, create_graph=order < 2)
            results += grads
            value = sum(grad.abs().square().sum() for grad in grads)
        return results

    torch.testing.assert_close(derivatives(ops.conv1d), derivatives(torch_conv1d), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chosen", [c for c in product([False, True], repeat=3) if any(c)], ids=str)
def test_tangents_match_torch(chosen, dtype):
    """No operand's tangent is lost, whichever of them have one."""

    def tangent(convolve):
        operands = make_operands(CASE, dtype)[:3]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.cos()) if dual else t for t, dual in zip(operands, chosen, strict=True)]
            return forward_ad.unpack_dual(convolve(*duals, **CASE.geometry)).tangent

    torch.testing.assert_close(tangent(ops.conv1d), tangent(torch_conv1d))


def test_lazily_conjugated_operands_have_the_gradients_of_resolved_ones():
    def gradients(conjugate):
        operands = make_operands(CASE, torch.complex128, requires_grad=True)[:3]
        output = ops.conv1d(*(conjugate(t) for t in operands), **CASE.geometry)
        return torch.autograd.grad(output, operands, torch.ones_like(output).mul(1j).conj())

    torch.testing.assert_close(gradients(torch.conj), gradients(torch.conj_physical))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_strides_of_output_and_gradients_match_torch(layout, dtype):
    def strides(convolve):
        case = Case(2, 4, 9, 6, 3, groups=2)
        operands = make_operands(case, dtype)[:3]
        if layout == "NLC":
            operands = [t.mT.contiguous().mT if t.dim() == 3 else t for t in operands]
        operands = [t.requires_grad_() for t in operands]
        output = convolve(*operands, **case.geometry)
        return [t.stride() for t in (output, *torch.autograd.grad(output.real.sum(), operands))]

    assert strides(ops.conv1d) == strides(torch_conv1d)


class CalledOperators(TorchDispatchMode):
    """Records the names of this package's operators that are called below autograd."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "conv1d_ext":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("chosen", list(product([False, True], repeat=3)), ids=str)
def test_only_the_gradients_asked_for_are_computed_and_only_what_they_need_is_saved(chosen):
    operands = make_operands(CASE)[:3]
    for operand, needs_grad in zip(operands, chosen, strict=True):
        operand.requires_grad_(needs_grad)
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = ops.conv1d(*operands, **CASE.geometry)
    # The gradient of the weight takes the input and the other way round.
    assert {t.data_ptr() for t in saved} == {operands[i].data_ptr() for i in (0, 1) if chosen[1 - i]}
    assert output.requires_grad == any(chosen)
    if any(chosen):
        with CalledOperators() as called:
            output.backward(torch.ones_like(output))
        expected = [f"conv1d_backward_{name}" for name, c in zip(["input", "weight", "bias"], chosen, strict=True) if c]
        assert called.names == expected
        assert [t.grad is not None for t in operands] == list(chosen)


def test_gradients_left_out_of_a_call_of_grad_are_not_computed():
    operands = make_operands(CASE, requires_grad=True)[:3]
    output = ops.conv1d(*operands, **CASE.geometry)
    with CalledOperators() as called:
        torch.autograd.grad(output.sum(), operands[1])
    assert called.names == ["conv1d_backward_weight"]


@pytest.mark.parametrize("changed", [0, 1], ids=["input", "weight"])
def test_rejects_backward_after_a_saved_operand_was_changed_in_place(changed):
    operands = make_operands(CASE, requires_grad=True)[:3]
    output = ops.conv1d(*operands, **CASE.geometry)
    with torch.no_grad():
        operands[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_rejects_a_second_backward_unless_the_graph_is_retained():
    operands = make_operands(CASE, requires_grad=True)[:3]
    output = ops.conv1d(*operands, **CASE.geometry).sum()
    output.backward(retain_graph=True)
    once = [operand.grad.clone() for operand in operands]
    output.backward()
    for operand, grad in zip(operands, once, strict=True):
        assert torch.equal(operand.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


def test_an_undefined_gradient_of_the_output_gives_undefined_gradients():
    class Sink(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    operands = make_operands(CASE, requires_grad=True)[:3]
    Sink.apply(ops.conv1d(*operands, **CASE.geometry)).backward()
    assert [operand.grad for operand in operands] == [None, None, None]


def test_nothing_is_recorded_in_inference_mode_and_without_grad_mode():
    operands = make_operands(CASE, requires_grad=True)[:3]
    expected = ops.conv1d(*operands, **CASE.geometry)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            output = ops.conv1d(*operands, **CASE.geometry)
        assert output.grad_fn is None
        assert torch.equal(output, expected)


def test_the_node_carries_the_name_and_the_edges_of_its_operator():
    input, weight, bias, _ = make_operands(CASE, requires_grad=True)
    node = ops.conv1d(input.exp(), weight.sin(), bias.cos(), **CASE.geometry).grad_fn
    assert node.name() == "Conv1dBackward0"
    assert [edge.name() for edge, _ in node.next_functions if edge] == ["ExpBackward0", "SinBackward0", "CosBackward0"]


@pytest.mark.skipif(not hasattr(torch.autograd.graph, "node_creation_hook"), reason="new in torch 2.14")
def test_node_creation_hook_sees_the_complete_node():
    operands, nodes = make_operands(CASE, requires_grad=True)[:3], []
    with torch.autograd.graph.node_creation_hook(lambda node: nodes.append((node.name(), len(node.next_functions)))):
        ops.conv1d(*operands, **CASE.geometry)
    assert nodes[-1] == ("Conv1dBackward0", 4)
