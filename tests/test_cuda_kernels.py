"""The CUDA kernels on an emulated GPU (tests/emulator) against the float64 oracle: every operator, type, tile, layout."""

import pytest
import reference
import torch
from cases import CASES, Case, Operands, make_operands
from emulator.kernels import CHOICES, OPS, TYPES, Choice, Device, dtype_of, run
from torch import Tensor

NONEMPTY = [case for case in CASES if case.batch > 0]


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


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", NONEMPTY, ids=str)
def test_matches_oracle(case: Case, type: str) -> None:
    operands = operands_of(type, case)
    for op in OPS:
        check(op, type, case, operands)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", NONEMPTY, ids=str)
def test_matches_oracle_by_every_kernel(case: Case, type: str, choice: Choice) -> None:
    operands = operands_of(type, case)
    for op in OPS[:3]:
        check(op, type, case, operands, choice=choice)
