"""Results are equal to the bit, whatever the number of threads and wherever in a batch an item lies."""

from collections.abc import Iterator

import pytest
import torch
from cases import Case, make_operands

from conv1d_ext import _C

OPS = torch.ops.conv1d_ext
# Each large enough for several threads: many positions, channels, groups; long sums over batch and positions.
CASES = [
    Case(1, 16, 20000, 8, 5, padding=(2, 2)),
    Case(1, 128, 60, 256, 3, padding=(1, 1)),
    Case(3, 64, 3000, 64, 9, padding=(4, 4), groups=64),
    Case(40, 3, 700, 4, 7, stride=2, padding=(3, 3), padding_mode="reflect"),
    Case(16, 1, 5000, 1, 31),
    Case(64, 96, 3, 96, 3, padding=(1, 1)),
]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def all_bits(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    x, w, bias, grad = make_operands(case, dtype)
    return [
        OPS.conv1d(x, w, bias, **case.geometry),
        OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry),
        OPS.conv1d_backward_weight(grad, x, case.kernel_size, **case.geometry),
        OPS.conv1d_backward_bias(grad),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    expected = all_bits(case, dtype)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for actual, first in zip(all_bits(case, dtype), expected, strict=True):
            assert torch.equal(actual, first), f"{threads} threads"


@pytest.mark.parametrize("case", [c for c in CASES if c.batch > 1], ids=str)
def test_bits_do_not_depend_on_the_batch(case: Case) -> None:
    x, w, bias, grad = make_operands(case)
    output = OPS.conv1d(x, w, bias, **case.geometry)
    grad_input = OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry)
    for n in (0, case.batch // 2, case.batch - 1):
        assert torch.equal(OPS.conv1d(x[n : n + 1], w, bias, **case.geometry), output[n : n + 1])
        alone = OPS.conv1d_backward_input(grad[n : n + 1], w, case.in_length, **case.geometry)
        assert torch.equal(alone, grad_input[n : n + 1])


def test_uses_the_threads_that_torch_is_set_to() -> None:
    """Counted from outside: the CPU time of the process against the time on the clock."""
    import time

    case = Case(1, 128, 4000, 128, 9)
    x, w, bias, _ = make_operands(case)

    def cores_in_use() -> float:
        OPS.conv1d(x, w, bias)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(20):
            OPS.conv1d(x, w, bias)
        return (time.process_time() - cpu) / (time.perf_counter() - wall)

    torch.set_num_threads(1)
    assert cores_in_use() < 1.2
    if _C.build_info()["openmp"] and torch.get_num_threads() == 1:
        torch.set_num_threads(2)
        assert cores_in_use() > 1.2
