"""The kernels against the float64 oracle: every operator, data type, instruction set and memory layout."""

from collections.abc import Iterator

import pytest
import reference
import torch
from cases import CASES, Case, Operands, make_operands
from torch import Tensor

from conv1d_ext import _C
from conv1d_ext.backends import cpu

OPS = torch.ops.conv1d_ext
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]


@pytest.fixture
def tiny_caches() -> Iterator[None]:
    """So small that channels, taps, positions and sums are cut into many blocks."""
    before = _C.cache_sizes()
    _C.set_cache_sizes(512, 2048)
    yield
    _C.set_cache_sizes(*before)


def run_all(module: object, case: Case, operands: Operands) -> dict[str, Tensor]:
    """The four operators' results by name; `module` is torch.ops.conv1d_ext or the oracle."""
    x, w, bias, grad = operands
    return {
        "conv1d": module.conv1d(x, w, bias, **case.geometry),
        "conv1d_backward_input": module.conv1d_backward_input(grad, w, case.in_length, **case.geometry),
        "conv1d_backward_weight": module.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry),
        "conv1d_backward_bias": module.conv1d_backward_bias(grad),
    }


def check_all(case: Case, operands: Operands) -> None:
    expected = run_all(reference, case, operands)
    for op, actual in run_all(OPS, case, operands).items():
        assert actual.dtype == operands.input.dtype
        reference.assert_op_matches(op, case, actual, expected[op])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(case: Case, dtype: torch.dtype, isa: str) -> None:
    check_all(case, make_operands(case, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle_in_small_blocks(case: Case, dtype: torch.dtype, isa: str, tiny_caches: None) -> None:
    check_all(case, make_operands(case, dtype))


def transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def sliced(t: Tensor) -> Tensor:
    """Every second element of a larger tensor whose other elements would spoil any sum."""
    larger = torch.full([2 * n + 1 for n in t.shape], torch.nan, dtype=t.dtype)
    larger[1::2, 1::2, 1::2] = t
    return larger[1::2, 1::2, 1::2]


def expanded(t: Tensor) -> Tensor:
    return t[:1, :, :1].expand(t.shape)


LAYOUTS = {"transposed": transposed, "sliced": sliced, "expanded": expanded}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("case", [c for c in CASES[::3] if c.batch > 0], ids=str)
def test_reads_any_strides(case: Case, operand: str, layout: str, dtype: torch.dtype) -> None:
    operands = make_operands(case, dtype)
    check_all(case, operands._replace(**{operand: LAYOUTS[layout](getattr(operands, operand))}))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("operand", ["input", "weight", "grad_output", "bias"])
def test_reads_conjugated_operands(operand: str, dtype: torch.dtype) -> None:
    case = Case(2, 6, 20, 4, 3, stride=2, padding=(1, 2), groups=2)
    operands = make_operands(case, dtype)
    check_all(case, operands._replace(**{operand: getattr(operands, operand).conj()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_memory_format_follows_the_weight(dtype: torch.dtype) -> None:
    case = Case(2, 6, 20, 4, 3, padding=(1, 1))
    x, w, bias, grad = make_operands(case, dtype)
    for weight in (w, transposed(w)):
        output = OPS.conv1d(x, weight, bias, **case.geometry)
        expected = reference.torch_conv1d(x, weight, bias, **case.geometry)
        grad_input = OPS.conv1d_backward_input(grad, weight, case.in_length, **case.geometry)
        assert output.stride() == expected.stride()
        assert (grad_input.stride(1) == 1) == (output.stride(1) == 1)


def as_computed(values: torch.Tensor, isa: str) -> torch.Tensor:
    """The instruction for pairs of bfloat16 takes denormals for zero, and so does torch where it uses it."""
    if isa in ("avx512_bf16", "amx") and values.dtype == torch.bfloat16:
        return torch.where(values.abs() < torch.finfo(values.dtype).tiny, 0, values)
    return values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_converts_every_16_bit_value(dtype: torch.dtype, isa: str) -> None:
    """By a convolution with a weight of one: all 65536 bit patterns come out as they went in, NaN as NaN."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    # Unit stride takes the vector conversions, stride 2 the scalar ones.
    for stride in (1, 2):
        output = OPS.conv1d(values.reshape(1, 1, -1), one, stride=stride).flatten()
        output, expected = as_computed(output, isa), as_computed(values[::stride] + 0, isa)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_to_nearest_even(dtype: torch.dtype, isa: str) -> None:
    """Sums of two values, exact in float, rounded as torch rounds them: ties, denormals, overflow."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (1, 2, 2**15), generator=generator, dtype=torch.int16)
    pairs = as_computed(bits.view(dtype), isa)
    ones = torch.ones(1, 2, 1, dtype=dtype)
    expected = as_computed((pairs[0, 0].float() + pairs[0, 1].float()).to(dtype), isa)
    for stride in (1, 2):
        output = OPS.conv1d(pairs, ones, stride=stride).flatten()
        torch.testing.assert_close(as_computed(output, isa), expected[::stride], rtol=0, atol=0, equal_nan=True)


def test_writes_nothing_to_its_operands(isa: str) -> None:
    case = Case(2, 6, 50, 4, 3, stride=2, padding=(2, 1), padding_mode="reflect")
    operands = make_operands(case)
    copies = [t.clone() for t in operands]
    run_all(OPS, case, operands)
    for operand, copy in zip(operands, copies, strict=True):
        assert torch.equal(operand, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 7, 50])
def test_gradients_of_replicated_positions_are_rounded_twice(stride: int, dtype: torch.dtype) -> None:
    """Once without the padding and once with all of it: of positive terms, half a unit each."""
    case = Case(2, 3, 60, 5, 60, stride=stride, padding=(55, 45), padding_mode="replicate")
    _, weight, _, grad_output = (operand.abs() for operand in make_operands(case, dtype))
    actual = OPS.conv1d_backward_input(grad_output, weight, case.in_length, **case.geometry)
    expected = reference.conv1d_backward_input(grad_output, weight, case.in_length, **case.geometry)
    torch.testing.assert_close(actual.double(), expected, rtol=1.01 * torch.finfo(dtype).eps, atol=0)


LARGE = [
    Case(1, 64, 3000, 96, 5, padding=(2, 2)),
    Case(2, 300, 700, 70, 3, stride=2, padding=(1, 1)),
    Case(1, 2, 4000, 9, 1025, padding=(512, 512)),
    Case(1, 3, 9000, 5, 3, padding=(2048, 2048), dilation=2048),
    Case(1, 1500, 40, 33, 3, padding=(1, 1)),
    Case(130, 24, 9, 40, 3, padding=(1, 1)),
    Case(1, 1, 20000, 130, 400, stride=160),
    Case(2, 40, 6000, 40, 4, padding=(3, 0), groups=40),
    Case(3, 500, 210, 560, 3, padding=(1, 1)),  # weights in passes
    Case(1, 600, 21, 700, 3, padding=(1, 1)),  # columns, for blocks of channels
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_matches_oracle_on_large_layers(case: Case, dtype: torch.dtype, isa: str) -> None:
    with cpu.flags(allow_toom_cook=False):  # which has large layers of its own
        check_all(case, make_operands(case, dtype))


@pytest.mark.parametrize(("channels", "kernel_size", "groups"), [((768, 768), 1, 4), ((80, 128), 3, 1)])
def test_errors_are_at_most_twice_those_of_torch(channels: tuple[int, int], kernel_size: int, groups: int) -> None:
    """Of the norm, where torch adds up parts of 16 channels. With parts of 256 products here they were 2.5 and 2.1."""
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(channels[0], channels[1], kernel_size, groups=groups, bias=False).requires_grad_(False)
    x = torch.randn(2, channels[0], 500)
    exact = torch.nn.functional.conv1d(x.double(), layer.weight.double(), groups=groups)
    assert (OPS.conv1d(x, layer.weight, groups=groups) - exact).norm() <= 2 * (layer(x) - exact).norm()
