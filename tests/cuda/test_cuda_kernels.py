"""The CUDA kernels on a GPU: against the float64 oracle, torch on the same GPU, and the CPU's kernels."""

import pytest
import reference
import torch
from cases import CASES, Case, Operands, make_operands
from gpu import DEVICE, needs, on_gpu
from test_kernels import DTYPES, LAYOUTS, OPS, run_all
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from conv1d_ext import backends


def check_all(case: Case, operands: Operands) -> None:
    """Operands on the GPU."""
    expected = run_all(reference, case, Operands(*(t if t is None else t.cpu() for t in operands)))
    for op, actual in run_all(OPS, case, operands).items():
        assert (actual.device, actual.dtype) == (operands.input.device, operands.input.dtype)
        reference.assert_op_matches(op, case, actual.cpu(), expected[op])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(case: Case, dtype: torch.dtype) -> None:
    needs(dtype)
    check_all(case, on_gpu(make_operands(case, dtype)))


LARGE = [
    Case(4, 64, 3000, 96, 5, padding=(2, 2)),
    Case(2, 300, 700, 70, 3, stride=2, padding=(1, 1)),
    Case(3, 256, 1001, 256, 3, padding=(1, 1)),
    Case(1, 3, 9000, 5, 3, padding=(2048, 2048), dilation=2048),
    Case(1, 1500, 40, 33, 3, padding=(1, 1)),
    Case(130, 24, 9, 40, 3, padding=(1, 1)),
    Case(1, 1, 20000, 130, 400, stride=160),
    Case(2, 40, 6000, 40, 4, padding=(3, 0), groups=40),
    Case(2, 96, 2000, 96, 31, padding=(15, 15), groups=96, padding_mode="circular"),
    Case(2, 512, 300, 256, 1),
    Case(2, 64, 2000, 128, 4, stride=2, padding=(1, 1), groups=4),
    # Signals that are packed in chunks: of positions, of batch items.
    Case(1, 48, 180_000, 20, 3, stride=2, padding=(1, 2), padding_mode="reflect"),
    Case(1, 80, 130_000, 20, 2, padding=(5, 0), dilation=5),
    Case(40, 80, 3000, 20, 1),
    Case(1, 4, 400_000, 17, 6, padding=(3, 3)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_matches_oracle_on_large_layers(case: Case, dtype: torch.dtype) -> None:
    needs(dtype)
    check_all(case, on_gpu(make_operands(case, dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("case", [c for c in CASES[::3] if c.batch > 0], ids=str)
def test_reads_any_strides(case: Case, operand: str, layout: str, dtype: torch.dtype) -> None:
    needs(dtype)
    operands = on_gpu(make_operands(case, dtype))
    tensor = getattr(operands, operand)
    if layout == "sliced":  # it makes its larger tensor on the CPU
        larger = torch.full([2 * n + 1 for n in tensor.shape], torch.nan, dtype=dtype, device=DEVICE)
        larger[1::2, 1::2, 1::2] = tensor
        changed = larger[1::2, 1::2, 1::2]
    else:
        changed = LAYOUTS[layout](tensor)
    check_all(case, operands._replace(**{operand: changed}))


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reads_operands_that_begin_anywhere(dtype: torch.dtype, offset: int) -> None:
    """Copies of 16 bytes need a beginning that is a multiple of them."""
    needs(dtype)
    case = Case(2, 64, 256, 64, 3, padding=(1, 1))

    def shifted(t: Tensor) -> Tensor:
        memory = torch.empty(t.numel() + offset, dtype=dtype, device=DEVICE)[offset:]
        return memory.copy_(t.flatten()).view(t.shape)

    operands = on_gpu(make_operands(case, dtype))
    check_all(case, Operands(*map(shifted, operands)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("operand", ["input", "weight", "grad_output", "bias"])
def test_reads_conjugated_operands(operand: str, dtype: torch.dtype) -> None:
    case = Case(2, 6, 20, 4, 3, stride=2, padding=(1, 2), groups=2)
    operands = on_gpu(make_operands(case, dtype))
    check_all(case, operands._replace(**{operand: getattr(operands, operand).conj()}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[::4] + LARGE, ids=str)
def test_matches_torch_and_the_cpu(case: Case, dtype: torch.dtype) -> None:
    """Twice the tolerance: torch's result has an error of its own, and so has the CPU's.

    Without a bias, which torch adds to what it has rounded to 16 bits.
    """
    needs(dtype)
    operands = make_operands(case, dtype)._replace(bias=None)
    actual = OPS.conv1d(*on_gpu(operands)[:3], **case.geometry).cpu()
    limits = {key: 2 * value for key, value in reference.tolerance(dtype, case.terms("conv1d")).items()}
    torch.testing.assert_close(actual, OPS.conv1d(*operands[:3], **case.geometry), **limits)
    if case.batch > 0:
        torchs = reference.torch_conv1d(*on_gpu(operands)[:3], **case.geometry).cpu()
        torch.testing.assert_close(actual, torchs, **limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("case", CASES[::2] + LARGE, ids=str)
def test_tf32_is_as_exact_as_its_operands(case: Case, dtype: torch.dtype, tf32: None) -> None:
    """Each operand is off by 2^-11 of itself, and their errors are as good as independent: five standard deviations."""
    operands = make_operands(case, dtype)
    expected = run_all(reference, case, operands)
    for op, actual in run_all(OPS, case, on_gpu(operands)).items():
        terms = case.terms(op) * (2 if dtype.is_complex else 1)
        atol = 5 * 2**-10 * (4 + terms) ** 0.5
        torch.testing.assert_close(actual.cpu().to(expected[op].dtype), expected[op], rtol=2**-10, atol=atol)


SPLIT = 1 + 2**-12  # TF32 takes it for 1


def sum_of_64() -> float:
    return OPS.conv1d(torch.full((1, 64, 256), SPLIT, device=DEVICE), torch.ones(64, 64, 1, device=DEVICE))[
        0, 0, 0
    ].item()


@pytest.mark.parametrize("allow", [True, False])
def test_tf32_is_used_where_torch_allows_it_at_the_call(allow: bool, tf32: None) -> None:
    expected = 64.0 if allow else 64 * SPLIT
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allow else "ieee"
    assert sum_of_64() == expected
    torch.backends.cudnn.conv.fp32_precision = "ieee" if allow else "tf32"
    assert sum_of_64() != expected
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.enabled = False
    try:
        assert sum_of_64() == 64 * SPLIT
    finally:
        torch.backends.cudnn.enabled = True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    """Sums of two values, exact in float, rounded as torch rounds them: ties, denormals, overflow."""
    needs(dtype)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (1, 2, 2**15), generator=generator, dtype=torch.int16)
    pairs = bits.view(dtype).to(DEVICE)
    output = OPS.conv1d(pairs, torch.ones(1, 2, 1, dtype=dtype, device=DEVICE)).flatten()
    expected = (pairs[0, 0].float() + pairs[0, 1].float()).to(dtype)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


def test_memory_format_follows_the_weight() -> None:
    case = Case(2, 6, 20, 4, 3, padding=(1, 1))
    x, w, bias, grad = on_gpu(make_operands(case))
    for weight, channels in ((w, 20), (w.mT.contiguous().mT, 1)):
        output = OPS.conv1d(x, weight, bias, **case.geometry)
        grad_input = OPS.conv1d_backward_input(grad, weight, case.in_length, **case.geometry)
        assert (output.stride(1), grad_input.stride(1)) == (channels, channels)
        reference.assert_op_matches(
            "conv1d", case, output.cpu(), reference.conv1d(x.cpu(), w.cpu(), bias.cpu(), **case.geometry)
        )


def operators_profiled(*operands: Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        OPS.conv1d(*operands)
    return {event.key for event in profiled.key_averages()}


def test_switch_hands_the_calls_to_torch() -> None:
    operands = torch.randn(2, 8, 50, device=DEVICE), torch.randn(8, 8, 3, device=DEVICE)
    assert "aten::conv1d" not in operators_profiled(*operands)
    with backends.cuda.flags(enabled=False):
        assert "aten::conv1d" in operators_profiled(*operands)
        expected = torch.conv1d(*operands)
        assert torch.equal(OPS.conv1d(*operands), expected)
    assert "aten::conv1d" not in operators_profiled(*operands)


def test_what_is_not_covered_is_torchs() -> None:
    operands = [t.to(DEVICE).to(torch.complex32) for t in make_operands(Case(2, 4, 9, 6, 3), torch.complex64)[:3]]
    try:
        expected = torch.conv1d(*operands)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            OPS.conv1d(*operands)
    else:
        assert torch.equal(OPS.conv1d(*operands), expected)


@pytest.mark.parametrize("on_cpu", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_mixed_devices_give_torchs_error(on_cpu: tuple[int, ...]) -> None:
    operands = [t.cpu() if i in on_cpu else t for i, t in enumerate(on_gpu(make_operands(Case(2, 4, 9, 6, 3)))[:3])]
    with pytest.raises(RuntimeError) as expected:
        torch.conv1d(*operands)
    with pytest.raises(RuntimeError) as actual:
        OPS.conv1d(*operands)
    assert str(actual.value).splitlines()[0] == str(expected.value).splitlines()[0]
