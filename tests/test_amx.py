"""Convolution by the matrix unit: right on every shape, as exact as direct sums, whatever its operands' magnitude."""

import itertools
from collections.abc import Iterator

import pytest
import reference
import torch
from cases import CASES, Case, make_operands
from test_fft import check_bits, results
from test_nonfinite import check_places
from test_plan import LAYERS

import conv1d_ext
from conv1d_ext import _C
from conv1d_ext.backends import cpu

pytestmark = pytest.mark.skipif("amx" not in _C.supported_isas(), reason="this CPU has no matrix unit")

OPS = torch.ops.conv1d_ext
OPERATORS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight"]
CASES = [case for case in CASES if case.batch > 0]
# Several blocks, passes and items of a panel; channels and taps that fill no step, and taps that share one; strides
# with phases; rows and positions that fill no tile; weights that are packed for each panel, a chunk at a time; single
# channels, whose taps are a step's products, forward and of the gradient.
LARGE = [
    Case(2, 70, 700, 33, 3, padding=(1, 1), padding_mode="circular"),
    Case(1, 33, 2000, 50, 4, padding=(3, 0), dilation=5),
    Case(2, 24, 1800, 24, 5, padding=(8, 8), dilation=4, groups=3),
    Case(9, 40, 30, 17, 7, padding=(3, 3)),
    Case(1, 3, 3000, 16, 11, padding=(25, 25), dilation=5, padding_mode="reflect"),
    Case(1, 1, 5000, 40, 200, stride=80),
    Case(3, 1, 901, 40, 37, stride=5, padding=(20, 17), padding_mode="reflect"),
    Case(2, 30, 700, 1, 45, padding=(22, 40)),
    Case(2, 6, 400, 12, 9, padding=(4, 4), groups=6),
    Case(2, 96, 801, 130, 5, stride=3, padding=(2, 2)),
    Case(1, 600, 200, 530, 3, padding=(1, 1)),
    Case(5, 500, 222, 1070, 1),
    Case(3, 310, 181, 420, 8, stride=2, padding=(3, 3), dilation=3),
    Case(3, 40, 501, 33, 7, stride=4, padding=(2, 2), dilation=6),
    Case(2, 20, 900, 24, 2, stride=3),
    Case(1, 40, 1500, 36, 3, dilation=600),
]


@pytest.fixture
def everywhere() -> Iterator[None]:
    """All that the matrix unit can compute it does."""
    before, isa = _C.amx_use(), _C.isa()
    _C.set_isa("amx")
    _C.set_amx_use("where possible")
    yield
    _C.set_amx_use(before)
    _C.set_isa(isa)


def check(case: Case) -> None:
    """Against direct sums of random numbers: 256 of them are a part, whose error is some units."""
    operands = make_operands(case)
    exact = results(reference, case, *operands)
    for actual, expected in zip(results(OPS, case, *operands), exact, strict=False):
        error = (actual - expected).norm() / expected.norm().clamp(min=1)
        assert error < 3 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_matches_oracle(case: Case, everywhere: None) -> None:
    check(case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_matches_oracle_in_bfloat16(case: Case, everywhere: None) -> None:
    """To the rounding of the result, whose error is at most 2^-9 of it."""
    operands = [operand.bfloat16() for operand in make_operands(case)]
    exact = results(reference, case, *operands)
    for actual, expected in zip(results(OPS, case, *operands), exact, strict=False):
        assert (actual.double() - expected).norm() < 2**-8 * expected.norm()


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_matches_oracle_in_many_blocks(case: Case, everywhere: None) -> None:
    operands = make_operands(case)
    computed = results(OPS, case, *operands)
    with cpu.flags(allow_amx=False):
        direct = results(OPS, case, *operands)
    # Or this tests something else: kernels that raise alarms are forgiven everything.
    shape = {name: getattr(case, name) for name in ("batch", "in_channels", "in_length", "out_channels", "kernel_size")}
    for op, ours, others in zip(OPERATORS, computed, direct, strict=True):
        by_unit = _C.plan(op, "float32", **shape, **case.geometry)["algorithm"] == "amx"
        assert by_unit or op != "conv1d"
        assert torch.equal(ours, others) != by_unit
    caches = _C.cache_sizes()
    try:
        _C.set_cache_sizes(4 << 10, 64 << 10)
        check(case)
    finally:
        _C.set_cache_sizes(*caches)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_is_no_less_exact_than_torch(case: Case, everywhere: None) -> None:
    x, w, *_ = make_operands(case)
    exact = reference.conv1d(x, w, None, **case.geometry)
    ours, torchs = OPS.conv1d(x, w, None, **case.geometry), reference.torch_conv1d(x, w, None, **case.geometry)
    assert (ours - exact).norm() <= 1.1 * (torchs - exact).norm()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-12, 1e12, 1e30])
def test_magnitude_of_operands_costs_no_digits(scale: float, everywhere: None) -> None:
    """Below some 1e-15 the unit would round pieces to zero, above they could overflow."""
    x, w, g = torch.randn(2, 64, 300), torch.randn(64, 64, 3), torch.randn(2, 64, 298)

    def compute(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
        y = [OPS.conv1d(x, w), OPS.conv1d_backward_input(g, w, 300), OPS.conv1d_backward_weight(g, x, 3)]
        return [result.double() for result in y]

    with cpu.flags(allow_amx=False):
        exact = compute(x.double(), w.double(), g.double())
    for operands, scaled in [((x * scale, w, g), (0, 2)), ((x, w * scale, g), (0, 1)), ((x, w, g * scale), (1, 2))]:
        results = compute(*operands)
        for i in scaled:
            error = (results[i] / scale - exact[i]).norm() / exact[i].norm()
            assert error < (1e-6 if scale > 1e-37 else 1e-5)  # denormal numbers have fewer bits


@pytest.mark.parametrize("spoil", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("case", [*CASES[::4], *LARGE], ids=str)
def test_infinity_and_nan_appear_where_torch_has_them(case: Case, spoil: str, everywhere: None) -> None:
    check_places(case, spoil, torch.float32)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_batch(case: Case, everywhere: None) -> None:
    check_bits(case)


def check_memory(op: str, dtype: str, **shape: int) -> None:
    this = _C.plan(op, dtype, **shape)
    if this["algorithm"] == "amx":
        assert this["scratch_bytes"] + this["shared_bytes"] <= 4 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("op", OPERATORS)
def test_memory_is_bounded_whatever_the_batch_and_length(op: str, kind: str, dtype: str, everywhere: None) -> None:
    in_channels, out_channels, kernel_size, geometry = LAYERS[kind]
    shape = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, **geometry}
    for batch, in_length in [(1, 2 * 10**7), (10**5, 2 * 10**7), (10**5, 70000)]:
        check_memory(op, dtype, **{**shape, "batch": batch, "in_length": in_length})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel_size", [1, 3, 500, 2000])
@pytest.mark.parametrize("op", OPERATORS)
def test_memory_is_bounded_whatever_the_kernel(op: str, kernel_size: int, dtype: str, everywhere: None) -> None:
    channels = [(1, 4096), (4096, 1), (64, 1024), (1024, 4096)]
    for (ins, outs), batch, positions, stride in itertools.product(channels, (1, 1000), (1, 20, 200), (1, 2, 500)):
        in_length = kernel_size + (positions - 1) * stride
        shape = {"in_channels": ins, "out_channels": outs, "kernel_size": kernel_size, "stride": stride}
        check_memory(op, dtype, **shape, batch=batch, in_length=in_length)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPERATORS[:2])
def test_choice_does_not_depend_on_the_batch(op: str, dtype: str) -> None:
    many = itertools.chain(range(8, 200, 8), range(300, 1500, 150))
    for channels, in_length, stride in itertools.product(many, (10, 50, 150, 500), (1, 2)):
        shape = {"in_channels": channels, "out_channels": channels, "kernel_size": 3, "stride": stride}
        plans = [_C.plan(op, dtype, **shape, in_length=in_length, batch=batch) for batch in (1, 3, 100)]
        assert len({(this["algorithm"], this.get("chunk_steps")) for this in plans}) == 1


def test_many_weights_are_packed_in_chunks(everywhere: None) -> None:
    """By each thread, where few are packed once for all. The cases above have both."""
    few, many = (
        _C.plan("conv1d", "float32", batch=5, in_channels=ins, in_length=222, out_channels=outs, kernel_size=1)
        for ins, outs in ((70, 33), (500, 1070))
    )
    assert few["shared_bytes"] > 0 == many["shared_bytes"]
    assert few["chunk_steps"] == few["channel_steps"]
    assert many["chunk_steps"] < many["channel_steps"]


@pytest.mark.parametrize("op", OPERATORS)
def test_is_chosen_where_it_is_faster(op: str) -> None:
    """Far from where it meets the others."""
    before = _C.isa()
    _C.set_isa("amx")
    try:
        shape = {"kernel_size": 3, "in_length": 4000, "batch": 1}
        dense = {"in_channels": 256, "out_channels": 256, **shape}
        for dtype in ("float32", "bfloat16"):
            assert _C.plan(op, dtype, **dense)["algorithm"] == "amx"
        for dtype in ("float64", "float16"):
            assert _C.plan(op, dtype, **dense)["algorithm"] != "amx"
        for channels, groups in [(256, 256), (4, 1)]:
            plan = _C.plan(op, "float32", in_channels=channels, out_channels=channels, groups=groups, **shape)
            assert plan["algorithm"] != "amx"
        with cpu.flags(allow_amx=False):
            assert not cpu.allow_amx
            assert _C.plan(op, "float32", **dense)["algorithm"] == "panel"
        assert cpu.allow_amx
    finally:
        _C.set_isa(before)


def test_explained(capsys: pytest.CaptureFixture) -> None:
    """With the limit of the unit, which is far beyond that of the FMA units."""
    conv1d_ext.explain(torch.nn.Conv1d(256, 256, 3), (1, 256, 4000))
    with cpu.flags(allow_amx=False):
        conv1d_ext.explain(torch.nn.Conv1d(256, 256, 3), (1, 256, 4000))
    limits = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("at least")]
    with_unit, without = map(float, limits)
    assert with_unit < without / 2
