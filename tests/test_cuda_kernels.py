"""The CUDA kernels on an emulated GPU (tests/emulator) against the float64 oracle: every operator, type and tile."""

import itertools
import re
import shutil
from pathlib import Path

import pytest
import reference
import torch
from cases import CASES, Case, Operands, make_operands
from emulator.kernels import CHOICES, OPS, TYPES, Choice, Device, EmulatorError, dtype_of, run, typed
from emulator.library import load
from test_kernels import sliced, transposed
from test_nonfinite import assert_same_places, spoiled
from torch import Tensor

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
NONEMPTY = [case for case in CASES if case.batch > 0]


def shifted(t: Tensor) -> Tensor:
    """Transposed, and an element beyond where it were aligned."""
    _, c, length = t.shape
    storage = torch.full((t.numel() + 1,), torch.nan, dtype=t.dtype)
    return storage.as_strided(t.shape, (c * length, 1, c), 1).copy_(t)


# Sums of taps and of channels that are computed in parts, and added up.
IN_PARTS = [
    Case(2, 1, 61, 20, 10, stride=5),
    Case(2, 6, 50, 40, 5, padding=(2, 1), dilation=2, groups=2),
    Case(1, 3, 40, 17, 4, stride=3, padding=(3, 2), padding_mode="reflect"),
    Case(3, 300, 9, 10, 3, padding=(1, 1)),
    Case(2, 20, 11, 270, 3, stride=2, padding=(1, 1), padding_mode="circular"),
]

# A row that takes 38 MB when it is packed, of which few positions are used: chunks have 32 MB.
IN_CHUNKS = Case(1, 32, 300_000, 17, 2, stride=1000)

LAYOUTS = {"transposed": transposed, "sliced": sliced, "shifted": shifted}


def emulate(op: str, type: str, case: Case, operands: Operands, result: Tensor | None = None, **settings) -> Tensor:
    """The operator's result; in `result`, where one is given to be written to or added to."""
    x, w, bias, grad = operands
    signal, factor, shape = {
        "conv1d": (x, w, case.output_shape),
        "conv1d_backward_input": (grad, w, case.input_shape),
        "conv1d_backward_weight": (x, grad, case.weight_shape),
        "conv1d_backward_bias": (grad, None, case.out_channels),
    }[op]
    if result is None:
        result = torch.full(shape if isinstance(shape, tuple) else (shape,), torch.nan, dtype=dtype_of(type))
    has_bias = op == "conv1d" and not settings.get("accumulate")
    run(op, type, case, signal, factor, bias if has_bias else None, result, **settings)
    return result


def oracle(op: str, case: Case, operands: Operands) -> Tensor:
    x, w, bias, grad = operands
    return {
        "conv1d": lambda: reference.conv1d(x, w, bias, **case.geometry),
        "conv1d_backward_input": lambda: reference.conv1d_backward_input(grad, w, case.in_length, **case.geometry),
        "conv1d_backward_weight": lambda: reference.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry),
        "conv1d_backward_bias": lambda: reference.conv1d_backward_bias(grad),
    }[op]()


def rounded_to_tf32(t: Tensor | None) -> Tensor | None:
    return None if t is None else ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def operands_of(type: str, case: Case) -> Operands:
    """For TF32 numbers that are of that type: rounding is for those alone who multiply in matrix units."""
    operands = make_operands(case, dtype_of(type))
    return Operands(*map(rounded_to_tf32, operands)) if type == "tf32" else operands


def check(op: str, type: str, case: Case, operands: Operands, **settings) -> None:
    actual = emulate(op, type, case, operands, **settings)
    reference.assert_matches(actual, oracle(op, case, operands), case.terms(op))


def expect_failure(request: pytest.FixtureRequest, reason: str) -> None:
    request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", NONEMPTY + IN_PARTS, ids=str)
def test_matches_oracle(case: Case, type: str) -> None:
    operands = operands_of(type, case)
    for op in OPS:
        check(op, type, case, operands)


def test_long_signals_are_packed_in_chunks() -> None:
    operands = operands_of("float32", IN_CHUNKS)
    for op in ("conv1d", "conv1d_backward_weight"):
        check(op, "float32", IN_CHUNKS, operands)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("type", TYPES[:4])  # float16 has bfloat16's kernels
@pytest.mark.parametrize("case", NONEMPTY, ids=str)
def test_matches_oracle_by_every_kernel(case: Case, type: str, choice: Choice) -> None:
    operands = operands_of(type, case)
    for op in OPS[:3]:
        check(op, type, case, operands, choice=choice)


# Channels of a multiple of 16 bytes are copied as such where they are neighbours: in `transposed`, not in `shifted`.
@pytest.mark.parametrize("choice", [Choice(), Choice("matrix", "small"), Choice("matrix", "large", "gather")], ids=str)
@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", NONEMPTY[::9], ids=str)
def test_reads_any_strides(case: Case, layout: str, type: str, choice: Choice) -> None:
    x, w, bias, grad = operands_of(type, case)
    operands = Operands(LAYOUTS[layout](x), LAYOUTS[layout](w), bias, LAYOUTS[layout](grad))
    for op in OPS:
        check(op, type, case, operands, choice=choice)


@pytest.mark.parametrize("type", ["float32", "float16"])
@pytest.mark.parametrize("case", NONEMPTY[::5], ids=str)
def test_reads_expanded_tensors(case: Case, type: str) -> None:
    x, w, bias, grad = operands_of(type, case)
    x, w, grad = x[:1, :1].expand(x.shape), w[:1].expand(w.shape), grad[..., :1].expand(grad.shape)
    for op in OPS[:3]:
        for choice in (Choice(), Choice("matrix")):
            check(op, type, case, Operands(x, w, bias, grad), choice=choice)


def ordered(t: Tensor, order: tuple[int, ...], padding: int = 0, shift: int = 0) -> Tensor:
    """With the dimensions in this order in memory, from the farthest apart to neighbours."""
    strides, elements = [0] * t.dim(), 1
    for dim in reversed(order):
        strides[dim] = elements
        elements = elements * t.shape[dim] + padding
    storage = torch.full((elements + shift,), torch.nan, dtype=t.dtype)
    return storage.as_strided(t.shape, strides, shift).copy_(t)


# Tiles of weights that are read in one run, in runs of taps, number by number; of all taps and of a part of them.
@pytest.mark.parametrize("choice", [Choice("matrix", "small"), Choice("matrix", "large", "unfold")], ids=str)
@pytest.mark.parametrize("type", ["bfloat16", "tf32", "float64"])
@pytest.mark.parametrize(("padding", "shift"), [(0, 0), (8, 0), (0, 1)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_packs_weights_of_any_layout(
    order: tuple[int, ...], padding: int, shift: int, type: str, choice: Choice
) -> None:
    for case in (Case(1, 40, 9, 264, 1), Case(1, 48, 12, 72, 5), Case(1, 16, 90, 24, 70), Case(1, 6, 41, 10, 37)):
        operands = operands_of(type, case)
        operands = operands._replace(weight=ordered(operands.weight, order, padding, shift))
        for op in OPS[:2]:
            check(op, type, case, operands, choice=choice)


# Channels of rows whose chunks lie together, of positions whose channels do, and neither.
@pytest.mark.parametrize("type", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", [
    Case(5, 1, 104, 8, 1), Case(300, 1, 8, 16, 1), Case(3, 1, 4099, 1, 1), Case(2, 1, 9000, 24, 1),
    Case(700, 1, 5, 2, 1),
], ids=str)  # fmt: skip
def test_layouts_do_not_show_in_the_sums_of_the_bias(case: Case, type: str) -> None:
    operands = operands_of(type, case)
    check("conv1d_backward_bias", type, case, operands)
    expected = emulate("conv1d_backward_bias", type, case, operands)
    for layout in LAYOUTS.values():
        other = operands._replace(grad_output=layout(operands.grad_output))
        assert torch.equal(emulate("conv1d_backward_bias", type, case, other), expected)


# More splits of few weights than one thread adds up, of a multiple of 16 bytes or not.
@pytest.mark.parametrize("type", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", [Case(40, 1, 900, 1, 5), Case(24, 16, 256, 16, 3), Case(16, 33, 200, 31, 3)], ids=str)
def test_adds_up_many_splits(case: Case, type: str) -> None:
    operands = operands_of(type, case)
    for order in ((0, 1, 2), (2, 0, 1)):
        before = torch.randn(case.weight_shape).to(dtype_of(type))
        result = ordered(before, order)
        emulate("conv1d_backward_weight", type, case, operands, result, accumulate=True, negate=True)
        expected = before - oracle("conv1d_backward_weight", case, operands)
        reference.assert_matches(result, expected, case.terms("conv1d_backward_weight") + 1)


@pytest.mark.parametrize("type", ["bfloat16", "float64"])
@pytest.mark.parametrize("padding", [(0, 3), (130, 7), (5, 140)])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_folds_the_padding_of_long_rows(mode: str, padding: tuple[int, int], type: str) -> None:
    for length in (141, 257, 700):
        case = Case(2, 3, length, 20, 5, padding=padding, padding_mode=mode)
        operands = operands_of(type, case)
        for layout in LAYOUTS.values():
            result = layout(torch.full(case.input_shape, torch.nan, dtype=dtype_of(type)))
            emulate("conv1d_backward_input", type, case, operands, result)
            expected = oracle("conv1d_backward_input", case, operands)
            reference.assert_matches(result, expected, case.terms("conv1d_backward_input"))


@pytest.mark.parametrize("negate", [False, True], ids=["add", "subtract"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["overwrite", "accumulate"])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("case", NONEMPTY[6::20] + IN_PARTS[1:], ids=str)
def test_writes_and_adds_in_any_layout(case: Case, layout: str, type: str, accumulate: bool, negate: bool) -> None:
    operands = operands_of(type, case)
    for op in OPS[:3]:
        product = oracle(op, case, operands._replace(bias=None))
        before = torch.randn_like(product).to(dtype_of(type))
        result = LAYOUTS[layout](before.clone() if accumulate else torch.full_like(before, torch.nan))
        for choice in (Choice(), Choice("matrix")):
            written = result.clone() if layout == "transposed" else LAYOUTS[layout](result)
            emulate(op, type, case, operands, written, accumulate=accumulate, negate=negate, choice=choice)
            expected = -product if negate else product
            if accumulate:
                expected = expected + before
            elif op == "conv1d" and operands.bias is not None:
                expected = expected + operands.bias.double()[:, None]
            reference.assert_matches(written, expected, case.terms(op) + 1)
            everything = torch.empty(0, dtype=written.dtype).set_(written.untyped_storage())
            assert everything.isnan().sum() == everything.numel() - written.numel()  # nothing else was written


@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
@pytest.mark.parametrize("case", NONEMPTY[5::12], ids=str)
def test_rounds_operands_to_tf32(case: Case, choice: Choice) -> None:
    """To the nearest: products of rounded numbers are exact in float32."""
    operands = make_operands(case)
    x, w, bias, grad = operands
    rounded = Operands(rounded_to_tf32(x), rounded_to_tf32(w), bias, rounded_to_tf32(grad))
    for op in OPS[:3]:
        actual = emulate(op, "tf32", case, operands, choice=choice)
        reference.assert_matches(actual, oracle(op, case, rounded), case.terms(op))


@pytest.mark.parametrize("choice", [Choice(), *CHOICES], ids=str)
@pytest.mark.parametrize("type", ["float32", "bfloat16"])
def test_few_blocks_do_the_work_of_many(type: str, choice: Choice) -> None:
    """As they must where there are more than a grid may have: the results are the same bits."""
    for case in (Case(3, 20, 40, 34, 3, stride=2, groups=2), Case(2, 3, 300, 3, 9, groups=3, dilation=2)):
        operands = operands_of(type, case)
        for op in OPS:
            expected = emulate(op, type, case, operands, choice=choice)
            assert torch.equal(emulate(op, type, case, operands, choice=choice, device=Device(most_blocks=2)), expected)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", NONEMPTY[3::12], ids=str)
def test_sums_have_one_order_in_all_tiles(case: Case, type: str) -> None:
    """The batch has a say in the choice of tile and staging, so these must not show in an item's bits."""
    choices = [Choice("matrix", tile, staging) for tile in ("small", "large") for staging in ("window", "gather")]
    operands = operands_of(type, case)
    for op in OPS[:2]:
        first, *others = (emulate(op, type, case, operands, choice=choice) for choice in choices)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", NONEMPTY[::4] + IN_PARTS, ids=str)
def test_results_do_not_depend_on_the_device(case: Case, type: str) -> None:
    operands = operands_of(type, case)
    for op in OPS:
        results = [emulate(op, type, case, operands, device=d) for d in (Device(86, 99 << 10), Device(90, 227 << 10))]
        assert torch.equal(*results)


@pytest.mark.parametrize("choice", [Choice(), *CHOICES], ids=str)
@pytest.mark.parametrize(("op", "spoil"), [
    ("conv1d", "input"), ("conv1d", "weight"), ("conv1d_backward_input", "grad_output"),
    ("conv1d_backward_input", "weight"), ("conv1d_backward_weight", "input"), ("conv1d_backward_weight", "grad_output"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_infinity_and_nan_appear_where_they_should(
    op: str, spoil: str, choice: Choice, request: pytest.FixtureRequest
) -> None:
    if (op, spoil) == ("conv1d_backward_input", "weight"):
        expect_failure(request, "multiplies the weight with zeros where there are no outputs")
    if (op, spoil) == ("conv1d_backward_weight", "input") and choice.staging == "window":
        expect_failure(request, "multiplies the input with zeros where there are no outputs")
    for case in NONEMPTY[:60:6]:
        operands = operands_of("float32", case)
        operands = operands._replace(**{spoil: spoiled(getattr(operands, spoil))})
        assert_same_places(emulate(op, "float32", case, operands, choice=choice), oracle(op, case, operands))


# A line of the kernels, what it becomes, what is said of it, and an operator and a type that run it.
FAULTS = {
    "missing barrier": (
        "correlate.cuh", "wait_copies<kAhead - 1>(); sync_block();", "wait_copies<kAhead - 1>();",
        "with no barrier between|that nothing has written|is under way", "conv1d", "float32",
    ),
    "wait for one group too few": (
        "outer.cuh", "wait_copies<kAhead - 1>();", "wait_copies<kAhead>();",
        "is under way", "conv1d_backward_weight", "float32",
    ),
    "off by one at a tail": (
        "correlate.cuh", "if (at < 0 || row >= rows) return;", "if (at < 0 || row > rows) return;",
        "writes what block|global memory out of bounds", "conv1d", "float16",
    ),
    "channels beyond the last": (
        "staging.cuh", "if (channel < p.channels && shown >= 0) {", "if (shown >= 0) {",
        "reads 2 bytes of global memory out of bounds", "conv1d", "float16",
    ),
    "window too small": (
        "plan.cpp", "plan.window_rows = static_cast<int>(in_windows ? rows :",
        "plan.window_rows = static_cast<int>(in_windows ? rows - 1 :",
        "reads shared memory|loads matrices from|copy", "conv1d_backward_weight", "float16",
    ),
    "fragments exchanged": (
        "units.cuh", "b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);", "b[n / 2][n % 2 * 2 + 1], b[n / 2][n % 2 * 2]);",
        "Tensor-likes are not close", "conv1d", "float16",
    ),
    "a part of the channels left out": (
        "parts.cuh", "split < splits;", "split + 1 < splits;",
        "Tensor-likes are not close", "conv1d", "float32",
    ),
    "a tap left out": (
        "parts.cuh", "tap < residue.taps;", "tap + 1 < residue.taps;",
        "Tensor-likes are not close", "conv1d_backward_input", "float32",
    ),
    "a chunk of the signal taken for another": (
        "run_inl.cuh", "packer.pack(chunk, rows);", "packer.pack(chunks[0], rows);",
        "Tensor-likes are not close", "conv1d", "float32",
    ),
}  # fmt: skip
# Where it is not the usual one: the case by which a fault is found, and which has to be computed in that way.
CASE_OF_FAULT = {
    "a part of the channels left out": IN_PARTS[3],
    "a tap left out": IN_PARTS[0],
    "a chunk of the signal taken for another": IN_CHUNKS,
}


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    file, line, faulty, message, op, type = FAULTS[fault]
    shutil.copytree(CUDA, tmp_path / "cuda")
    anywhere = r"\s+".join(map(re.escape, line.split()))  # however it is indented
    source, count = re.subn(anywhere, lambda _: faulty, (tmp_path / "cuda" / file).read_text())
    assert count > 0
    (tmp_path / "cuda" / file).write_text(source)
    library = load("all", "libconv1d_emulated.so", SOURCES=tmp_path, OUT=tmp_path / "out", CXXFLAGS="-O1")
    case = CASE_OF_FAULT.get(fault, Case(2, 37, 150, 41, 3, padding=(1, 1)))
    choice = Choice() if fault in CASE_OF_FAULT else Choice("matrix", "small", "window")
    operands = operands_of(type, case)
    with pytest.raises((EmulatorError, AssertionError), match=message):
        check(op, type, case, operands, choice=choice, library=typed(library))
    check(op, type, case, operands, choice=choice)
