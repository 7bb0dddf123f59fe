"""Results are equal to the bit, whatever the number of threads and wherever in a batch an item lies; and threads of
any kind may call."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import CASES as SMALL_CASES
from cases import Case, make_operands

import conv1d_ext
from conv1d_ext.backends import cpu

OPS = torch.ops.conv1d_ext
# Each large enough for several threads: many positions, channels, groups; long sums over batch and positions.
CASES = [
    Case(1, 16, 20000, 8, 5, padding=(2, 2)),
    Case(1, 128, 60, 256, 3, padding=(1, 1)),
    Case(3, 64, 3000, 64, 9, padding=(4, 4), groups=64),
    Case(40, 3, 700, 4, 7, stride=2, padding=(3, 3), padding_mode="reflect"),
    Case(16, 1, 5000, 1, 31),
    Case(64, 96, 3, 96, 3, padding=(1, 1)),
    Case(11, 500, 23, 400, 3, padding=(1, 0)),
    # Weights that are packed in passes for a batch, but not for a single item.
    Case(3, 500, 210, 560, 3, padding=(1, 1)),
    Case(3, 500, 410, 560, 3, stride=2),
]


@pytest.fixture(autouse=True)
def _without_toom_cook() -> Iterator[None]:
    """Whose bits are in test_toom_cook.py."""
    with cpu.flags(allow_toom_cook=False):
        yield


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.batch > 1], ids=str)
def test_bits_do_not_depend_on_the_batch(case: Case, dtype: torch.dtype) -> None:
    x, w, bias, grad = make_operands(case, dtype)
    output = OPS.conv1d(x, w, bias, **case.geometry)
    grad_input = OPS.conv1d_backward_input(grad, w, case.in_length, **case.geometry)
    for n in (0, case.batch // 2, case.batch - 1):
        assert torch.equal(OPS.conv1d(x[n : n + 1], w, bias, **case.geometry), output[n : n + 1])
        alone = OPS.conv1d_backward_input(grad[n : n + 1], w, case.in_length, **case.geometry)
        assert torch.equal(alone, grad_input[n : n + 1])


@pytest.mark.parametrize("case", [c for c in SMALL_CASES if c.batch > 1], ids=str)
def test_bits_of_small_layers_do_not_depend_on_the_batch(case: Case, isa: str) -> None:
    test_bits_do_not_depend_on_the_batch(case, torch.float32)


BITS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_threads import CASES, all_bits
import hashlib
torch.set_num_threads(2)
digest = hashlib.sha256()
for case in CASES:
    for result in all_bits(case, torch.float32):
        digest.update(result.numpy().tobytes())
print(digest.hexdigest())
"""


def test_bits_do_not_depend_on_the_process() -> None:
    command = [sys.executable, "-c", BITS, os.path.dirname(__file__)]
    first, second = (subprocess.run(command, check=True, capture_output=True).stdout for _ in range(2))
    assert first == second != b""


def test_python_threads_share_a_module() -> None:
    """Each with a number of OpenMP threads of its own, and with lengths of its own, forward and backward."""
    layer = conv1d_ext.Conv1d(24, 32, 5, padding=2)
    inputs = [torch.randn(2, 24, 300 + 7 * i) for i in range(24)]

    def step(i: int) -> list[torch.Tensor]:
        x = inputs[i].clone().requires_grad_()
        output = layer(x)
        return [output, *torch.autograd.grad(output, (x, layer.weight, layer.bias), output)]

    def step_with_threads(i: int) -> list[torch.Tensor]:
        torch.set_num_threads(1 + i % 4)
        return step(i)

    torch.set_num_threads(1)
    expected = [step(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for results, first in zip(pool.map(step_with_threads, range(24)), expected, strict=True):
                assert all(map(torch.equal, results, first))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
@pytest.mark.parametrize("user", ["torch", "conv1d_ext"])
def test_forked_child_computes_after_the_parent_used_threads(user: str) -> None:
    """GNU's OpenMP runtime waits forever there, for threads that the child does not have: also in torch's operators."""
    torch.set_num_threads(4)
    layer = conv1d_ext.Conv1d(128, 256, 3, padding=1)
    x = torch.randn(8, 128, 1000)
    with torch.no_grad():
        before = layer(x).exp() if user == "conv1d_ext" else x.exp()
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits forever
            after = layer(x).exp() if user == "conv1d_ext" else x.exp()
            layer(x)
            os._exit(0 if torch.equal(after, before) and len(os.listdir("/proc/self/task")) == 4 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(layer(x).exp() if user == "conv1d_ext" else x.exp(), before)  # the parent computes on


SHUTDOWN = """
import threading, time, torch, conv1d_ext
layer, x = conv1d_ext.Conv1d(16, 16, 5), torch.randn(4, 16, 2000)
def work():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        layer(x).sum().backward()
    print("done\\n", end="", flush=True)  # in one piece
for _ in range(4):
    threading.Thread(target=work).start()
"""


def test_threads_compute_on_while_the_interpreter_shuts_down() -> None:
    """Daemon threads are another matter: they make torch itself abort, before Python 3.14."""
    result = subprocess.run([sys.executable, "-c", SHUTDOWN], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n" * 4, "")


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
