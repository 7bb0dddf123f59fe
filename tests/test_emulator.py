"""The emulated GPU itself: kernels that are right run and compute what they should, planted faults are found."""

import ctypes
import functools
import re

import pytest
import torch
from emulator.library import load
from torch import Tensor


@functools.cache
def library() -> ctypes.CDLL:
    loaded = load("faults", "libfaults.so")
    loaded.run_kernel.restype = ctypes.c_char_p
    return loaded


def run(kernel: str, input: Tensor, results: int) -> Tensor:
    """The results of one of faults.cu's kernels."""
    result = torch.full((results,), torch.nan)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (input, result)]
    sizes = [ctypes.c_int64(t.numel()) for t in (input, result)]
    error = library().run_kernel(kernel.encode(), pointers[0], sizes[0], pointers[1], sizes[1])
    if error is not None:
        raise RuntimeError(error.decode())
    return result


# Kernel, numbers in and out, and what is said of it.
FAULTS = [
    # Barriers between threads that share memory.
    ("reverse without barrier", 64, 64, "reads shared memory that nothing has written (byte 252)"),
    ("reverse with a warp's barrier", 64, 64, "reads shared memory that nothing has written (byte 252)"),
    ("reverse_twice without barrier", 64, 64, "thread 32: reads shared memory that thread 31 wrote, with no barrier"),
    ("reverse_warp without barrier", 64, 64, "reads shared memory that nothing has written (byte 124)"),
    ("reverse_warp across warps", 64, 64, "reads shared memory that nothing has written (byte 252)"),
    ("write before others read", 64, 64, "thread 32: reads shared memory that thread 0 wrote, with no barrier between"),
    ("write after others read", 64, 64, "thread 40: writes shared memory that warp 0 read, with no barrier between"),
    (
        "write after all read",
        64,
        64,
        "thread 40: writes shared memory that several warps read, with no barrier between",
    ),
    # Barriers and a warp's operations that not all threads reach.
    ("barrier of some lanes", 64, 64, "thread 32: waits at sync_block, but thread 40 is at the kernel's end"),
    ("barrier of some warps", 64, 64, "thread 0: waits at sync_block, but thread 32 is at the kernel's end"),
    ("barriers of two kinds", 64, 64, "thread 0: waits at sync_block, but thread 5 is at sync_warp"),
    ("shuffle of some", 64, 64, "thread 0: waits at shuffle_xor, but thread 31 is at the kernel's end"),
    # Global memory.
    ("double_all, one too many", 100, 100, "block 1, thread 36: reads 4 bytes of global memory out of bounds, at byte"),
    ("read before", 64, 64, "out of bounds, at byte -4 of input's 256"),
    ("read null", 64, 64, "out of bounds, at byte 0 of null"),
    ("write input", 64, 64, "writes input, which is to be read only"),
    ("misaligned global", 64, 64, "reads input misaligned to 16 (byte 4)"),
    ("read result", 64, 64, "reads result where nothing has written (byte 0)"),
    ("write twice", 64, 64, "thread 1: writes what block 0, thread 0 of the same launch wrote in result (byte 0)"),
    ("read others", 128, 128, "block 1, thread 0: reads what block 0, thread 0 of the same launch wrote in result"),
    ("write what others read", 128, 128, "block 1, thread 0: writes what block 0, thread 0 of the same launch read"),
    # Shared memory.
    ("read shared unwritten", 64, 64, "thread 63: reads shared memory that nothing has written (byte 252)"),
    ("read shared of the last block", 128, 128, "block 1, thread 0: reads shared memory that nothing has written"),
    ("read shared beyond", 64, 64, "thread 63: reads 4 bytes of shared memory out of bounds, at byte 256 of 256"),
    ("write shared before", 64, 64, "thread 0: writes 4 bytes of shared memory out of bounds, at byte -4 of 256"),
    ("misaligned shared", 64, 64, "writes shared memory misaligned to 16 (byte 8)"),
    # Copies in the background.
    ("sum_stages without wait", 1020, 64, "reads shared memory to which a copy of thread 63 is under way"),
    ("sum_stages, one group early", 1020, 64, "reads shared memory to which a copy of thread 63 is under way"),
    ("sum_stages without commit", 1020, 64, "reads shared memory to which a copy of thread 63 is under way"),
    ("sum_stages without barrier", 1020, 64, "reads shared memory that nothing has written"),
    ("sum_stages overwritten", 1020, 64, "thread 32: reads shared memory to which a copy of thread 31 is under way"),
    ("sum_stages without wait at the end", 1020, 64, "ends with copies that nothing waited for (byte 1024)"),
    ("sum_stages beyond the tail", 1020, 64, "thread 63: reads 16 bytes of global memory out of bounds, at byte 4080"),
    # Launches.
    ("too many blocks", 64, 64, "launch of 2147483648 blocks"),
    ("too much shared memory", 64, 64, "launch with 101377 bytes of shared memory, of which there are 101376"),
]


@pytest.mark.parametrize(("kernel", "inputs", "results", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_finds(kernel: str, inputs: int, results: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run(kernel, torch.randn(inputs), results)
    assert run("double_all", torch.ones(3), 3).tolist() == [2, 2, 2]  # a launch after a failed one


def test_runs_what_barriers_order() -> None:
    x = torch.randn(64)
    assert torch.equal(run("reverse", x.repeat(3), 192), x.flip(0).repeat(3))
    assert torch.equal(run("reverse_twice", x, 64), x)
    assert torch.equal(run("reverse_warp", x, 64), x.view(2, 32).flip(1).flatten())
    assert torch.equal(run("write after its warp read", x, 64), torch.cat([torch.ones(32), torch.zeros(32)]))


def test_tells_the_halves_of_a_word_apart() -> None:
    assert run("share_words", torch.zeros(64), 64).tolist() == [sum(range(64))] * 64


def test_launches_follow_each_other() -> None:
    assert run("fill twice", torch.zeros(1), 128).tolist() == [1] * 128


@pytest.mark.parametrize("length", [256, 1020, 1024, 2052])
def test_copies_arrive(length: int) -> None:
    x = torch.randn(length)
    sums = torch.nn.functional.pad(x, (0, -length % 256)).view(-1, 64, 4).sum((0, 2)).flip(0)
    torch.testing.assert_close(run("sum_stages", x, 64), sums)


def test_shuffles() -> None:
    x = torch.randn(32)
    sums = run("sum_warp", x, 64).view(32, 2)
    torch.testing.assert_close(sums[:, 0], x.sum().expand(32))
    assert torch.equal(sums[:, 1], x.double().sum().float().expand(32))


def product(kernel: str, depth: int) -> tuple[Tensor, Tensor]:
    """A 16 x depth matrix times a depth x 16 one by the kernel, and as it should be: of whole numbers, exact."""
    a = torch.randint(-9, 10, (16, depth)).float()
    b = torch.randint(-9, 10, (depth, 16)).float()
    return run(kernel, torch.cat([a.flatten(), b.flatten()]), 256).view(16, 16), a @ b


@pytest.mark.parametrize("kernel", [
    "multiply BFloat16", "multiply Float16", "multiply Tf32",
    "multiply BFloat16 transposed", "multiply Float16 transposed",
])  # fmt: skip
@pytest.mark.parametrize("depth", [16, 64])
def test_multiplies_matrices(kernel: str, depth: int) -> None:
    actual, expected = product(kernel, depth)
    assert torch.equal(actual, expected)


def test_a_wrong_fragment_gives_a_wrong_product() -> None:
    actual, expected = product("multiply Float16, fragments exchanged", 32)
    assert not torch.equal(actual, expected)


# Every 16-bit number, and for each pair of neighbours what lies half way, and a little to either side of that.
def numbers_between(dtype: torch.dtype) -> Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    exact = values.float()
    following = (values.view(torch.int16) + 1).view(dtype).float()
    halfway = ((exact.double() + following.double()) / 2).float()
    above = torch.nextafter(halfway, torch.tensor(torch.inf))
    below = torch.nextafter(halfway, torch.tensor(-torch.inf))
    extremes = torch.tensor([65519.99, 65520.0, -65520.0, 3.4e38, 2.0**-25, 2.0**-26, 1e-45, -1e-45] * 8)
    return torch.cat([exact, halfway, above, below, extremes])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_converts_as_torch(dtype: torch.dtype) -> None:
    x = numbers_between(dtype)
    actual = run({torch.bfloat16: "convert BFloat16", torch.float16: "convert Float16"}[dtype], x, len(x))
    torch.testing.assert_close(actual, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual.signbit() | actual.isnan(), x.signbit() | actual.isnan())


def test_rounds_to_tf32() -> None:
    """To 10 bits of mantissa: in units of the last, half away from zero."""
    x = torch.cat([torch.randn(2**14), torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, torch.inf] * 16)])
    mantissa, exponent = torch.frexp(x.double())
    units = mantissa * 2**11
    expected = torch.where(x.isinf(), x, torch.ldexp(units.sign() * (units.abs() + 0.5).floor(), exponent - 11).float())
    assert torch.equal(run("convert Tf32", x, len(x)), expected)
    assert run("convert Tf32", torch.full((64,), torch.nan), 64).isnan().all()
