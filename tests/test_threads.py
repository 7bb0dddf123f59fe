"""Results are equal to the bit, whatever the number of threads and wherever in a batch an item lies."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from cases import Case, make_operands

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


@pytest.fixture(scope="module")
def fresh_process() -> dict[str, int]:
    """In a process of its own, where no other operator has started threads: how many there are after a convolution on
    one thread and after one on four, and how many OpenMP runtimes are loaded."""
    script = """
import os, re, torch, conv1d_ext
x, w = torch.randn(1, 64, 4000), torch.randn(64, 64, 9)
def threads_after(threads):
    torch.set_num_threads(threads)
    torch.ops.conv1d_ext.conv1d(x, w)
    return len(os.listdir("/proc/self/task"))
before, one, four = len(os.listdir("/proc/self/task")), threads_after(1), threads_after(4)
runtimes = set(re.findall(r"/\\S*lib[gi]?omp[^/\\s]*", open("/proc/self/maps").read()))
print(one - before, four - before, len(runtimes))
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return dict(zip(("one", "four", "runtimes"), map(int, result.stdout.split()), strict=True))


def test_uses_the_threads_that_torch_is_set_to(fresh_process: dict[str, int]) -> None:
    assert (fresh_process["one"], fresh_process["four"]) == (0, 3)


def test_loads_no_second_openmp_runtime(fresh_process: dict[str, int]) -> None:
    assert fresh_process["runtimes"] == 1
