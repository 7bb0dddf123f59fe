"""Convolution through the Fourier transform: right on every shape, chosen where it is faster, and told apart from the
direct kernels by its rounding alone."""

import math
from collections.abc import Iterator

import pytest
import reference
import torch
from cases import CASES, Case, make_operands
from test_nonfinite import check_places
from test_plan import plan
from torch import Tensor

import conv1d_ext
from conv1d_ext import _C
from conv1d_ext.backends import cpu

OPS = torch.ops.conv1d_ext
OPERATORS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight"]
DTYPES = [torch.float32, torch.float64]
CASES = [case for case in CASES if case.batch > 0]
# Several blocks of several tiles, in several groups; kernels as long as a transform; more rows than a register tile.
LARGE = [
    Case(2, 10, 3000, 11, 40, padding=(20, 19)),
    Case(3, 1, 5000, 1, 700, padding=(699, 0)),
    Case(1, 3, 9000, 4, 513, padding=(256, 256), padding_mode="reflect"),
    Case(2, 48, 2500, 48, 33, padding=(16, 16), groups=48),
    Case(2, 6, 4000, 8, 21, padding=(60, 60), dilation=6, groups=2, padding_mode="circular"),
    Case(2, 5, 6000, 3, 120, stride=4, padding=(7, 50)),
    Case(1, 2, 700, 2, 2000, padding=(1000, 1000)),
]


@pytest.fixture
def everywhere() -> Iterator[None]:
    """All that can go through the transform does."""
    before = _C.fft_use()
    _C.set_fft_use("where possible")
    yield
    _C.set_fft_use(before)


def results(module: object, case: Case, x: Tensor, w: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    return [
        module.conv1d(x, w, bias, **case.geometry),
        module.conv1d_backward_input(grad, w, case.in_length, **case.geometry),
        module.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry),
    ]


def check(case: Case, dtype: torch.dtype) -> None:
    """Relative to the norm: some units for the levels of the transforms, and for the oracle's sums in float64."""
    operands = make_operands(case, dtype)
    exact = results(reference, case, *operands)
    for op, actual, expected in zip(OPERATORS, results(OPS, case, *operands), exact, strict=True):
        error = (actual - expected).norm() / expected.norm().clamp(min=1)
        assert error < (4 + 0.5 * math.sqrt(case.terms(op))) * torch.finfo(dtype).eps


def check_bits(case: Case) -> None:
    """The same for every number of threads, and of outputs and input gradients for an item alone."""
    operands = make_operands(case)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(OPS, case, *operands)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, results(OPS, case, *operands), expected))
    finally:
        torch.set_num_threads(before)
    x, w, bias, grad = operands
    alone = results(OPS, case, x[-1:], w, bias, grad[-1:])
    assert torch.equal(alone[0], expected[0][-1:])
    assert torch.equal(alone[1], expected[1][-1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(case: Case, dtype: torch.dtype, isa: str, everywhere: None) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_matches_oracle_in_many_blocks(case: Case, dtype: torch.dtype, isa: str, everywhere: None) -> None:
    check(case, dtype)
    caches = _C.cache_sizes()
    try:
        _C.set_cache_sizes(4 << 10, 64 << 10)
        check(case, dtype)
    finally:
        _C.set_cache_sizes(*caches)


def test_is_more_precise_than_long_sums() -> None:
    case = Case(1, 16, 4000, 16, 512)
    x, w, _, _ = make_operands(case)
    exact = reference.conv1d(x, w)
    through_fft = (OPS.conv1d(x, w) - exact).norm()
    with cpu.flags(allow_fft=False):
        assert through_fft < (OPS.conv1d(x, w) - exact).norm()


def test_error_of_a_quiet_passage_is_that_of_a_loud_one_beside_it() -> None:
    """What the README warns of, and no more than that: relative to what is loudest in a block."""
    case = Case(1, 1, 20_000, 1, 512)
    x, w, _, _ = make_operands(case)
    x[..., 10_000:10_010] *= 1e6
    error = (OPS.conv1d(x, w) - reference.conv1d(x, w)).abs()
    assert error.max() < 4 * torch.finfo(torch.float32).eps * 1e6 * w.norm()
    assert error[..., :5000].max() < 4 * torch.finfo(torch.float32).eps * x[..., :5000].abs().max() * w.norm()


@pytest.mark.parametrize("spoil", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("case", [*CASES[::4], *LARGE], ids=str)
def test_infinity_and_nan_appear_where_torch_has_them(case: Case, spoil: str, everywhere: None) -> None:
    check_places(case, spoil, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_that_only_overflow_on_the_way_are_finite(dtype: torch.dtype, everywhere: None) -> None:
    x = torch.full((2, 1, 3000), torch.finfo(dtype).max / 64, dtype=dtype)
    w = torch.full((1, 1, 32), 1.0, dtype=dtype)
    torch.testing.assert_close(OPS.conv1d(x, w), torch.full((2, 1, 2969), torch.finfo(dtype).max / 2, dtype=dtype))


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_batch(case: Case, everywhere: None) -> None:
    check_bits(case)


def test_gradients_are_those_of_the_function(everywhere: None) -> None:
    x, w = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 30), (4, 1, 9)))

    def function(x: Tensor, w: Tensor) -> Tensor:
        return conv1d_ext.functional.conv1d(x, w, None, 1, 3, 2, 2)

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


@pytest.mark.parametrize("op", OPERATORS)
def test_is_chosen_where_it_is_faster(op: str) -> None:
    """Far from where the two meet, on any CPU."""

    def algorithm(in_channels: int, out_channels: int, kernel_size: int, dtype: str = "float32", **geometry) -> str:
        shape = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        return _C.plan(op, dtype, batch=1, in_length=16_000, **shape, **geometry)["algorithm"]

    assert algorithm(16, 16, 512) == algorithm(64, 64, 128) == algorithm(1, 1, 4096) == "fft"
    assert algorithm(64, 64, 128, "float64") == algorithm(64, 64, 128, dilation=4) == "fft"
    assert algorithm(64, 64, 512, stride=4) == algorithm(64, 64, 1024, groups=64) == "fft"
    assert "fft" not in {algorithm(64, 64, 3), algorithm(256, 256, 5), algorithm(64, 64, 9, groups=64)}
    assert "fft" not in {algorithm(1, 257, 512, stride=256), algorithm(64, 64, 128, "bfloat16")}
    assert algorithm(64, 64, 128, accumulate=True) != "fft"  # a part of a complex product


@pytest.mark.parametrize("op", OPERATORS[:2])
def test_is_chosen_for_what_batches_gain(op: str) -> None:
    """Where an item alone takes about as long either way: its weights' spectra are shared by a batch."""
    shape = {"in_channels": 32, "in_length": 500, "out_channels": 32, "kernel_size": 39}
    padding = {"padding_left": 19, "padding_right": 19}
    assert _C.plan(op, "float32", batch=1, **shape, **padding)["algorithm"] == "fft"


@pytest.mark.parametrize("op", OPERATORS[:2])
def test_choice_does_not_depend_on_the_batch(op: str) -> None:
    for kernel_size in range(8, 64, 2):
        shape = {"in_channels": 8, "in_length": 700, "out_channels": 8, "kernel_size": kernel_size}
        plans = [_C.plan(op, "float32", batch=batch, **shape) for batch in (1, 3, 100)]
        assert len({(this["algorithm"], this.get("fft_length")) for this in plans}) == 1


@pytest.mark.parametrize("kind", ["grouped", "long and dilated"])
@pytest.mark.parametrize("op", OPERATORS)
def test_memory_is_bounded(op: str, kind: str) -> None:
    for batch, in_length in [(1, 300_000), (1, 10**8), (10**5, 300_000)]:
        this = plan(op, kind, "float32", batch, in_length, allow_fft=True)
        assert this["algorithm"] == "fft"
        assert this["scratch_bytes"] <= 17 << 20
        assert this["shared_bytes"] <= 96 << 20


def test_can_be_turned_off() -> None:
    case = Case(1, 64, 3000, 64, 128)
    operands = make_operands(case)
    on = results(OPS, case, *operands)
    assert cpu.allow_fft
    with cpu.flags(allow_fft=False):
        assert not cpu.allow_fft
        off = results(OPS, case, *operands)
    assert cpu.allow_fft
    assert not any(map(torch.equal, on, off))
    cpu.allow_fft = False
    try:
        assert all(map(torch.equal, results(OPS, case, *operands), off))
    finally:
        cpu.allow_fft = True


def test_explained(capsys: pytest.CaptureFixture) -> None:
    conv1d_ext.explain(torch.nn.Conv1d(64, 64, 128), (1, 64, 16_000))
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:16].strip(): line[16:].split() for line in lines}
    assert rows["algorithm"] == ["fft"] * 3
    shares = [float(word[:-1]) for word in rows["multiplications"] if word.endswith("%")]
    assert len(shares) == 3
    assert max(shares) < 10
    assert rows["error"][0] == "3e-07"
