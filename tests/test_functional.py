"""functional.conv1d against torch.nn.functional.conv1d: argument forms, batches, and who computes what."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, make_operands
from operators import operators_of
from torch import Tensor

from conv1d_ext.functional import conv1d, conv1d_padded

SAME_ON_BOTH_SIDES = [c for c in CASES if c.padding_mode == "zeros" and c.padding[0] == c.padding[1]]


@pytest.mark.parametrize("case", SAME_ON_BOTH_SIDES, ids=str)
def test_matches_torch(case):
    input, weight, bias, _ = make_operands(case, torch.float64)
    arguments = (input, weight, bias, case.stride, case.padding[0], case.dilation, case.groups)
    torch.testing.assert_close(conv1d(*arguments), F.conv1d(*arguments))


@pytest.mark.parametrize("case", SAME_ON_BOTH_SIDES[:20], ids=str)
def test_takes_input_without_a_batch(case):
    input, weight, bias, _ = make_operands(case, torch.float64)
    arguments = (input[0], weight, bias, case.stride, case.padding[0], case.dilation, case.groups)
    torch.testing.assert_close(conv1d(*arguments), F.conv1d(*arguments))


INPUT, WEIGHT, BIAS = torch.randn(2, 4, 16), torch.randn(6, 4, 4), torch.arange(6.0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias": None},
        {"bias": BIAS},
        {"stride": 2, "padding": 1, "dilation": 2},
        {"stride": (2,), "padding": (1,), "dilation": (2,)},
        {"stride": [2], "padding": [1], "dilation": [2]},
        {"stride": torch.Size([2])},
        {"stride": np.int64(2), "padding": (np.int32(1),)},
        {"stride": torch.tensor(2), "padding": (torch.tensor(1),)},
        {"padding": "valid", "stride": 3},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "same", "dilation": (2,), "bias": BIAS},
        {"groups": 1},
    ],
    ids=str,
)
def test_takes_the_argument_forms_of_torch(arguments):
    expected = F.conv1d(INPUT, WEIGHT, **arguments)
    torch.testing.assert_close(conv1d(INPUT, WEIGHT, **arguments), expected)
    torch.testing.assert_close(conv1d(input=INPUT, weight=WEIGHT, **arguments), expected)
    torch.testing.assert_close(conv1d(INPUT[0], WEIGHT, **arguments), expected[0])


def test_zero_padding_is_not_cropped_on_either_side():
    for padding in ((-1, 2), (2, -1)):
        with pytest.raises(RuntimeError, match="negative padding is not supported"):
            conv1d_padded(INPUT, WEIGHT, None, 1, padding, 1, 1, "zeros")


def test_same_padding_of_an_even_kernel_makes_no_copy_and_no_warning(recwarn):
    assert operators_of(conv1d, INPUT, WEIGHT, padding="same") == ["conv1d_ext::conv1d"]
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_keeps_the_dtype(dtype):
    output = conv1d(INPUT.to(dtype), WEIGHT.to(dtype), BIAS.to(dtype))
    assert output.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_computes_integers_as_torch_does(dtype):
    input, weight = torch.randint(0, 5, (2, 4, 16)).to(dtype), torch.randint(0, 5, (6, 4, 4)).to(dtype)
    torch.testing.assert_close(conv1d(input, weight, padding=1), F.conv1d(input, weight, padding=1))


def test_takes_meta_tensors():
    assert conv1d(INPUT.to("meta"), WEIGHT.to("meta"), stride=2).shape == (2, 6, 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_jit_trace_keeps_the_operator():
    traced = torch.jit.trace(lambda x: conv1d(x, WEIGHT, BIAS, padding="same"), (INPUT,))
    assert "conv1d_ext::conv1d" in str(traced.graph)
    longer = torch.randn(3, 4, 50)
    torch.testing.assert_close(traced(longer), conv1d(longer, WEIGHT, BIAS, padding="same"))


class Plain(torch.Tensor):
    """A subclass that inherits torch's handling of functions."""


class Handler(torch.Tensor):
    """A subclass with its own idea of what torch's conv1d does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return "handled" if func == F.conv1d else super().__torch_function__(func, types, args, kwargs)


class Wrapper(torch.Tensor):
    """A subclass that handles aten's operators and knows no others."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func.namespace == "aten"
        return func(*(arg.inner if isinstance(arg, Wrapper) else arg for arg in args), **(kwargs or {}))


def test_subclass_without_handlers_is_computed_here():
    output = conv1d(INPUT.as_subclass(Plain), WEIGHT)
    assert type(output) is Plain
    assert operators_of(conv1d, INPUT.as_subclass(Plain), WEIGHT)[-1] == "conv1d_ext::conv1d"


def test_subclass_with_handlers_sees_torchs_function():
    assert conv1d(INPUT.as_subclass(Handler), WEIGHT) == "handled"
    assert conv1d(INPUT, WEIGHT.as_subclass(Handler), padding="same") == "handled"
    torch.testing.assert_close(conv1d(Wrapper(INPUT), WEIGHT, BIAS), F.conv1d(INPUT, WEIGHT, BIAS))
    torch.testing.assert_close(conv1d(INPUT, WEIGHT, Wrapper(BIAS)), F.conv1d(INPUT, WEIGHT, BIAS))


def test_mode_sees_this_function():
    class Functions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list = []
    with Functions():
        output = conv1d(INPUT, WEIGHT, stride=2)
    assert seen == [conv1d]
    torch.testing.assert_close(output, F.conv1d(INPUT, WEIGHT, stride=2))


def test_default_device_does_not_divert():
    with torch.device("cpu"):
        assert operators_of(conv1d, INPUT, WEIGHT) == ["conv1d_ext::conv1d"]


def test_fx_keeps_the_function():
    graph = torch.fx.symbolic_trace(lambda x: conv1d(x, WEIGHT))
    assert conv1d in [node.target for node in graph.graph.nodes]
    torch.testing.assert_close(graph(INPUT), F.conv1d(INPUT, WEIGHT))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_result_requires_grad_as_torchs(requires_grad):
    weight = WEIGHT.clone().requires_grad_(requires_grad)
    assert conv1d(INPUT, weight).requires_grad == requires_grad
    with torch.no_grad():
        assert not conv1d(INPUT, weight).requires_grad
    with torch.inference_mode():
        assert conv1d(INPUT, weight).is_inference()
