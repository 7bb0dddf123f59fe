"""torch's own expectations of conv1d: the tables that drive its test suite, OpInfo for the function and ModuleInfo for
the modules, and its checks of operators in general."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import tolerance
from torch import Tensor
from torch._subclasses import CrossRefFakeMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal import composite_compliance
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db
from torch.testing._internal.common_utils import noncontiguous_like
from torch.testing._internal.opinfo.core import SampleInput

import conv1d_ext
from conv1d_ext.functional import conv1d

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
]
(OP,) = [op for op in op_db if op.name == "nn.functional.conv1d"]
DTYPES = sorted(OP.dtypes, key=str)
OURS = {torch.nn.Conv1d: conv1d_ext.Conv1d, torch.nn.LazyConv1d: conv1d_ext.LazyConv1d}
MODULES = [module for module in module_db if module.module_cls in OURS]

# The same values otherwise stored.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "noncontiguous": noncontiguous_like,
    "negative": lambda t: torch._neg_view(-t),
    "conjugate": lambda t: t.conj_physical().conj(),
    "negative conjugate": lambda t: torch._neg_view(-t.conj_physical()).conj(),
}


def samples(dtype: torch.dtype, requires_grad: bool = False) -> list[SampleInput]:
    return list(OP.sample_inputs("cpu", dtype, requires_grad=requires_grad))


def operands_of(sample: SampleInput) -> list[Tensor]:
    return [operand for operand in (sample.input, *sample.args) if operand is not None]


def results(convolve: Callable[..., Tensor], sample: SampleInput, cast: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The output and the gradients, where there are any, from operands that went through `cast`."""
    dtype = sample.input.dtype
    differentiable = dtype.is_floating_point or dtype.is_complex
    operands = [cast(operand).requires_grad_(differentiable) for operand in operands_of(sample)]
    output = convolve(*operands, **sample.kwargs)
    if not differentiable:
        return [output]
    torch.manual_seed(0)
    return [output, *torch.autograd.grad(output, operands, cast(torch.randn(output.shape).to(dtype)))]


def exact(tensor: Tensor) -> Tensor:
    dtype = tensor.dtype
    return tensor.to(torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype)


def test_the_tables_have_what_is_here() -> None:
    assert len(DTYPES) == 7
    assert {module.module_cls for module in MODULES} == OURS.keys()


@pytest.mark.parametrize(
    ("dtype", "view"), [(d, v) for d in DTYPES for v in VIEWS if d.is_complex or "conjugate" not in v], ids=str
)
def test_samples_match_torch(dtype: torch.dtype, view: str) -> None:
    for sample in samples(dtype):
        actual, expected = results(conv1d, sample, VIEWS[view]), results(F.conv1d, sample, exact)
        assert {result.dtype for result in actual} == {dtype}
        limits = {"rtol": 0.0, "atol": 0.0}
        if dtype != torch.int64:
            weight = sample.args[0]
            limits = tolerance(dtype, max(weight[0].numel(), weight[:, 0].numel(), expected[0].numel() // len(weight)))
            limits["atol"] *= 9 * 9  # the samples are drawn from -9 to 9
        torch.testing.assert_close([exact(result) for result in actual], expected, **limits)


def test_raises_as_expected() -> None:
    for error in OP.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            conv1d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_derivatives_match_finite_differences(dtype: torch.dtype) -> None:
    """Those that the table claims, exhaustively; torch's own are allowed to differ from run to run, these are not."""
    for sample in samples(dtype, requires_grad=True):
        assert gradcheck(
            partial(conv1d, **sample.kwargs),
            operands_of(sample),
            check_forward_ad=OP.supports_forward_ad,
            check_batched_grad=OP.check_batched_grad,
            check_batched_forward_grad=OP.check_batched_forward_grad,
            nondet_tol=0.0,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_second_derivatives_match_finite_differences(dtype: torch.dtype) -> None:
    assert OP.supports_gradgrad
    for sample in samples(dtype, requires_grad=True):
        assert gradgradcheck(
            partial(conv1d, **sample.kwargs),
            operands_of(sample),
            gen_non_contig_grad_outputs=True,
            check_fwd_over_rev=OP.supports_fwgrad_bwgrad,
            check_batched_grad=OP.check_batched_gradgrad,
            nondet_tol=0.0,
            fast_mode=True,
        )


@pytest.mark.parametrize("autocast", [False, True])
def test_fake_tensors_follow_forward_and_backward(autocast: bool) -> None:
    """CrossRefFakeMode runs every operator twice, and raises where shape, stride or dtype differ."""
    for sample in samples(torch.float32, requires_grad=True):
        with CrossRefFakeMode(), torch.autocast("cpu", enabled=autocast):
            conv1d(sample.input, *sample.args, **sample.kwargs).float().sum().backward()


def test_operands_that_are_copied_on_write_stay_uncopied() -> None:
    assert OP.supports_cow_input_no_materialize_forward
    assert OP.supports_cow_input_no_materialize_backward
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        for sample in samples(dtype):
            operands = [torch._lazy_clone(operand).requires_grad_() for operand in operands_of(sample)]
            output = conv1d(*operands, **sample.kwargs)
            grad_output = torch._lazy_clone(torch.ones_like(output))
            torch.autograd.grad(output, operands, grad_output)
            assert all(map(torch._C._is_cow_tensor, [*operands, grad_output]))


@pytest.mark.long
def test_complies_with_tensor_subclasses_in_any_combination() -> None:
    """torch's test of operators made of others, for wrapper tensors: here they get torch's own function."""
    for sample in samples(torch.float64, requires_grad=True):
        call = conv1d, [sample.input, *sample.args], sample.kwargs
        composite_compliance.check_with_mode(*call, torch.testing.assert_close)
        composite_compliance.check_all_permutations(*call, torch.testing.assert_close)
        composite_compliance.check_backward_formula(
            *call, sample.output_process_fn_grad, OP.gradcheck_wrapper, torch.testing.assert_close
        )
        composite_compliance.check_forward_ad_formula(*call, OP.gradcheck_wrapper, torch.testing.assert_close)


every_module = pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)


def module_inputs(info: ModuleInfo, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    requires_grad = dtype == torch.float64
    return info.module_inputs_func(info, "cpu", dtype, requires_grad, training)


def build(cls: type[torch.nn.Module], module_input: ModuleInput, **kwargs: Any) -> torch.nn.Module:
    """A module with random parameters, which `cls` does not change, not lazy any more."""
    arguments = module_input.constructor_input
    torch.manual_seed(0)
    module = cls(*arguments.args, **arguments.kwargs, **kwargs)
    if kwargs["device"] == "cpu":
        module(*module_input.forward_input.args)
    return module


def module_results(module: torch.nn.Module, input: Tensor) -> list[Tensor]:
    input = input.detach().requires_grad_()
    output = module(input)
    torch.manual_seed(0)
    return [output, *torch.autograd.grad(output, (input, *module.parameters()), torch.randn_like(output))]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_module
def test_modules_match_torch(info: ModuleInfo, dtype: torch.dtype, training: bool) -> None:
    assert dtype in info.dtypes
    inputs = module_inputs(info, dtype, training)
    assert inputs
    for module_input in inputs:
        (input,) = module_input.forward_input.args
        torchs, ours = (
            build(cls, module_input, device="cpu", dtype=dtype).train(training)
            for cls in (info.module_cls, OURS[info.module_cls])
        )
        assert type(ours) is conv1d_ext.Conv1d
        expected = module_results(torchs, input)
        limits = tolerance(dtype, terms=4 * 3 + 2 * 4)  # channels and taps, or batch and positions
        limits["atol"] *= 9  # inputs are drawn from -9 to 9
        for layout in (input, noncontiguous_like(input)):
            torch.testing.assert_close(module_results(ours, layout), expected, **limits)
        if module_input.reference_fn is not None:
            reference = module_input.reference_fn(ours, input)
            torch.testing.assert_close(ours(input), reference, **limits)
        assert repr(ours) == repr(torchs)
        twin = pickle.loads(pickle.dumps(ours))
        assert torch.equal(twin(input), ours(input))


@every_module
def test_modules_take_a_device(info: ModuleInfo) -> None:
    for module_input in module_inputs(info, torch.float32, True):
        module = build(OURS[info.module_cls], module_input, device="meta", dtype=torch.float32)
        assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@every_module
def test_derivatives_of_modules_match_finite_differences(info: ModuleInfo) -> None:
    assert info.supports_gradgrad
    for module_input in module_inputs(info, torch.float64, True):
        module = build(OURS[info.module_cls], module_input, device="cpu", dtype=torch.float64)
        names, parameters = zip(*module.named_parameters(), strict=True)

        def call(input: Tensor, *parameters: Tensor, module=module, names=names) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (input,))

        operands = (*module_input.forward_input.args, *parameters)
        assert gradcheck(call, operands, nondet_tol=0.0)
        assert gradgradcheck(call, operands, nondet_tol=0.0, fast_mode=True)
