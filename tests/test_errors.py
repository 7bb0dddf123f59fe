"""Bad input: the exception types of torch, and its messages or clearer ones."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import conv1d_ext
from conv1d_ext.functional import conv1d

INPUT, WEIGHT, BIAS = torch.randn(1, 4, 8), torch.randn(4, 4, 3), torch.randn(4)


def error_of(function, *args, **kwargs) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011
        function(*args, **kwargs)
    return info.value


def first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


FUNCTION = {
    "no dimension": (torch.tensor(1.0), WEIGHT),
    "one dimension": (INPUT[0, 0], WEIGHT),
    "four dimensions": (INPUT[None], WEIGHT),
    "channels": (INPUT, torch.randn(4, 5, 3)),
    "channels, unbatched": (INPUT[0], torch.randn(4, 5, 3)),
    "channels per group": (INPUT, WEIGHT, None, 1, 0, 1, 2),
    "no channels in the weight": (INPUT, torch.randn(4, 0, 3)),
    "too short": (INPUT[:, :, :2], WEIGHT),
    "too short for the dilation": (INPUT, WEIGHT, None, 1, 1, 5),
    "too short, empty batch": (INPUT[:0, :, :1], WEIGHT),
    "no length": (INPUT[:, :, :0], WEIGHT),
    "no length but padding": (INPUT[:, :, :0], WEIGHT, None, 1, 2),
    "stride 0": (INPUT, WEIGHT, None, 0),
    "stride -1": (INPUT, WEIGHT, None, -1),
    "padding -1": (INPUT, WEIGHT, None, 1, -1),
    "dilation 0": (INPUT, WEIGHT, None, 1, 0, 0),
    "dilation -1": (INPUT, WEIGHT, None, 1, 0, -1),
    "dilation 0, same": (INPUT, WEIGHT, None, 1, "same", 0),
    "groups 0": (INPUT, WEIGHT, None, 1, 0, 1, 0),
    "groups -1": (INPUT, WEIGHT, None, 1, 0, 1, -1),
    "groups do not divide": (INPUT, torch.randn(3, 2, 3), None, 1, 0, 1, 2),
    "no kernel": (INPUT, torch.randn(4, 4, 0)),
    "no output channels": (INPUT, torch.randn(0, 4, 3)),
    "weight of two dimensions": (INPUT, WEIGHT[0]),
    "weight of two dimensions, same": (INPUT, WEIGHT[0], None, 1, "same"),
    "weight of four dimensions": (INPUT, WEIGHT[None]),
    "bias size": (INPUT, WEIGHT, torch.randn(5)),
    "bias dimensions": (INPUT, WEIGHT, torch.randn(4, 1)),
    "input dtype": (INPUT.double(), WEIGHT),
    "input dtype, bias": (INPUT.double(), WEIGHT, BIAS),
    "weight dtype": (INPUT, WEIGHT.to(torch.complex64)),
    "bias dtype": (INPUT, WEIGHT, BIAS.half()),
    "integer input": (INPUT.long(), WEIGHT),
    "bfloat16 input": (INPUT.bfloat16(), WEIGHT),
    "bool": (INPUT.bool(), WEIGHT.bool()),
    "float8": (INPUT.to(torch.float8_e4m3fn), WEIGHT.to(torch.float8_e4m3fn)),
    "uint16": (INPUT.to(torch.uint16), WEIGHT.to(torch.uint16)),
    "stride of two": (INPUT, WEIGHT, None, (1, 2)),
    "stride of none": (INPUT, WEIGHT, None, ()),
    "padding of two": (INPUT, WEIGHT, None, 1, [1, 2]),
    "dilation of two": (INPUT, WEIGHT, None, 1, 0, (1, 2)),
    "unknown padding": (INPUT, WEIGHT, None, 1, "full"),
    "same with a stride": (INPUT, WEIGHT, None, 2, "same"),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "is in beta", "is a prototype"
    FUNCTION |= {
        "sparse": (INPUT.to_sparse(), WEIGHT),
        "sparse weight": (INPUT, WEIGHT.to_sparse()),
        "sparse bias": (INPUT, WEIGHT, BIAS.to_sparse()),
        "csr": (INPUT[0].to_sparse_csr(), WEIGHT),
        "mkldnn weight": (INPUT, WEIGHT.to_mkldnn()),
        "nested": (torch.nested.nested_tensor([INPUT[0], INPUT[0, :, :5]]), WEIGHT),
        "jagged": (torch.nested.nested_tensor([INPUT[0].T, INPUT[0, :, :5].T], layout=torch.jagged), WEIGHT),
        "quantized": (torch.quantize_per_tensor(INPUT, 0.1, 0, torch.quint8), WEIGHT),
    }
# Where the message is not torch's.
CLEARER = {
    "no length but padding": "Only zero batch or zero channel inputs",
    "dilation 0": "dilation should be greater than zero, but got 0",
    "dilation -1": "dilation should be greater than zero, but got -1",
    "dilation 0, same": "dilation should be greater than zero, but got 0",
    "groups do not divide": "expected weight to be divisible by 2",
    "no kernel": "kernel size should be greater than zero",
    "weight of four dimensions": "Expected 3-dimensional weight",
    "bfloat16 input": "expected scalar type BFloat16 but found Float",
    "nested": "'NestedTensorCPU' backend",
}
WRONG_TYPES = {
    "list": ([1.0], WEIGHT),
    "number": (1.0, WEIGHT),
    "None": (None, WEIGHT),
    "array": (INPUT.numpy(), WEIGHT),
    "weight": (INPUT, "weight"),
    "bias": (INPUT, WEIGHT, [0.0]),
    "float stride": (INPUT, WEIGHT, None, 1.0),
    "bool stride": (INPUT, WEIGHT, None, True),
    "bool in a list": (INPUT, WEIGHT, None, [True]),
    "no stride": (INPUT, WEIGHT, None, None),
    "range": (INPUT, WEIGHT, None, range(1, 2)),
    "no padding": (INPUT, WEIGHT, None, 1, None),
    "float dilation": (INPUT, WEIGHT, None, 1, 0, (1.0,)),
    "tuple of groups": (INPUT, WEIGHT, None, 1, 0, 1, (1,)),
}


@pytest.mark.parametrize("row", FUNCTION)
def test_function_raises_as_torch(row):
    expected, error = error_of(F.conv1d, *FUNCTION[row]), error_of(conv1d, *FUNCTION[row])
    assert type(error) is type(expected)
    assert CLEARER.get(row, first_line(expected)) in first_line(error)


@pytest.mark.parametrize("row", WRONG_TYPES)
def test_function_rejects_wrong_types(row):
    assert type(error_of(F.conv1d, *WRONG_TYPES[row])) is TypeError
    error = error_of(conv1d, *WRONG_TYPES[row])
    assert type(error) is TypeError
    assert "conv1d() received an invalid combination of arguments" in str(error)


@pytest.mark.parametrize("arguments", [(), (INPUT,), (INPUT, WEIGHT, None, 1, 0, 1, 1, 1)], ids=len)
def test_function_rejects_wrong_numbers_of_arguments(arguments):
    assert type(error_of(conv1d, *arguments)) is type(error_of(F.conv1d, *arguments)) is TypeError
    assert type(error_of(conv1d, INPUT, WEIGHT, strides=1)) is TypeError


HUGE = [2**60, 2**61, 2**62, 2**63 - 1]


@pytest.mark.parametrize("huge", HUGE)
def test_huge_numbers_raise_instead_of_overflowing(huge):
    for arguments in ((1, 0, huge), (1, huge, 1), (huge, huge, huge), (1, "same", huge)):
        assert type(error_of(conv1d, INPUT, WEIGHT, BIAS, *arguments)) is RuntimeError


@pytest.mark.parametrize("huge", [2**40, *HUGE])
def test_huge_numbers_that_make_sense_are_taken(huge):
    torch.testing.assert_close(conv1d(INPUT, WEIGHT, BIAS, stride=huge), F.conv1d(INPUT, WEIGHT, BIAS, stride=huge))
    one_tap = INPUT, WEIGHT[:, :, :1], BIAS, 1, 0, huge
    torch.testing.assert_close(conv1d(*one_tap), F.conv1d(*one_tap))


def test_numbers_beyond_64_bits_raise_as_in_torch():
    assert type(error_of(conv1d, INPUT, WEIGHT, None, 2**63)) is type(error_of(F.conv1d, INPUT, WEIGHT, None, 2**63))


EMPTY = {
    "batch": (INPUT[:0], WEIGHT),
    "batch and length": (INPUT[:0, :, :0], WEIGHT, None, 1, 2),
    "channels": (INPUT[:, :0], torch.randn(4, 0, 3)),
    "channels and length": (INPUT[:, :0, :0], torch.randn(4, 0, 3), None, 1, 2),
}


@pytest.mark.parametrize("row", EMPTY)
def test_empty_input_is_taken_as_in_torch(row):
    assert conv1d(*EMPTY[row]).shape == F.conv1d(*EMPTY[row]).shape


@pytest.mark.parametrize("row", EMPTY)
def test_gradients_of_empty_input_match_torch(row):
    input, weight, *rest = EMPTY[row]
    operands = [operand.detach().requires_grad_() for operand in (input, weight, BIAS)]
    grads = []
    for function in (F.conv1d, conv1d):
        output = function(*operands, *rest[1:])
        grads.append(torch.autograd.grad(output, operands, torch.ones_like(output)))
    torch.testing.assert_close(grads[1], grads[0])


CONSTRUCTOR = {
    "groups 0": {"groups": 0},
    "in_channels": {"in_channels": 3, "groups": 2},
    "out_channels": {"out_channels": 3, "groups": 2},
    "same with a stride": {"padding": "same", "stride": 2},
    "kernel size -1": {"kernel_size": -1},
}
CONSTRUCTOR_SETS = {  # the message lists a set, in any order
    "padding": ({"padding": "full"}, "Invalid padding string 'full'"),
    "padding mode": ({"padding_mode": "mirror"}, "but got padding_mode='mirror'"),
}


@pytest.mark.parametrize("row", CONSTRUCTOR)
def test_constructor_raises_as_torchs(row):
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **CONSTRUCTOR[row]}
    expected, error = error_of(torch.nn.Conv1d, **arguments), error_of(conv1d_ext.Conv1d, **arguments)
    assert (type(error), str(error)) == (type(expected), str(expected))


@pytest.mark.parametrize("row", CONSTRUCTOR_SETS)
def test_constructor_names_the_choices(row):
    arguments, phrase = CONSTRUCTOR_SETS[row]
    with pytest.raises(ValueError, match=phrase):
        conv1d_ext.Conv1d(4, 4, 3, **arguments)


# The module's arguments, the input, and a phrase where the message is not torch's.
MODULE = {
    "no tensor": ({}, [1.0], "conv1d() received an invalid combination of arguments"),
    "no tensor to pad": ({"padding": 1, "padding_mode": "reflect"}, None, "must be Tensor, not NoneType"),
    "one dimension": ({}, INPUT[0, 0], None),
    "one dimension to pad": ({"padding": 1, "padding_mode": "reflect"}, INPUT[0, 0], None),
    "four dimensions to pad": ({"padding": 1, "padding_mode": "circular"}, INPUT[None], None),
    "channels": ({}, INPUT[:, :3], None),
    "too short": ({}, INPUT[:, :, :2], None),
    "dtype": ({}, INPUT.double(), None),
    "dtype, padded": ({"padding": 1, "padding_mode": "replicate"}, INPUT.double(), None),
    "stride 0": ({"stride": 0}, INPUT, None),
    "padding -1": ({"padding": -1}, INPUT, None),
    "kernel of two": ({"kernel_size": (3, 3)}, INPUT, "Expected 3-dimensional weight"),
    "kernel 0": ({"kernel_size": 0}, INPUT, "kernel size should be greater than zero"),
    "reflected too wide": ({"padding": 8, "padding_mode": "reflect"}, INPUT, "Padding size should be less than"),
    "wrapped too wide": ({"padding": 9, "padding_mode": "circular"}, INPUT, None),
    "nothing to replicate": (
        {"padding": 2, "padding_mode": "replicate"},
        INPUT[:0, :, :0],
        "'replicate' needs an input of non-zero length",
    ),
    "cropped too much": ({"padding": -4, "padding_mode": "circular"}, INPUT, None),
    "lazy, one dimension": ("lazy", INPUT[0, 0], None),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("row", MODULE)
def test_module_raises_as_torchs(row):
    arguments, input, phrase = MODULE[row]
    errors = []
    for package in (torch.nn, conv1d_ext):
        if arguments == "lazy":
            module = package.LazyConv1d(4, 3)
        else:
            module = package.Conv1d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})
        errors.append(error_of(module, input))
    expected, error = errors
    assert type(error) is type(expected)
    assert (phrase in str(error)) if phrase else (first_line(error) == first_line(expected))
