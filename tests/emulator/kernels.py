"""csrc/cuda/kernels.h on the emulator: the operators of tests/reference.py, by the CUDA kernels."""

import ctypes
import functools
from typing import NamedTuple

import torch
from cases import Case
from emulator.library import load
from torch import Tensor

OPS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight", "conv1d_backward_bias"]
TYPES = ["float64", "float32", "tf32", "bfloat16", "float16"]
ALGORITHMS = ["any", "narrow", "matrix"]
TILES = ["any", "small", "medium", "large"]
STAGINGS = ["any", "window", "gather", "unfold"]
PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]


class Device(NamedTuple):
    capability: int = 86
    shared_bytes: int = 99 << 10
    most_blocks: int = 2**31 - 1


class Choice(NamedTuple):
    algorithm: str = "any"
    tile: str = "any"
    staging: str = "any"

    def __str__(self) -> str:
        return "-".join(word for word in self if word != "any") or "any"


SM_86, AUTOMATIC = Device(), Choice()
# One of each kind.
CHOICES = [
    Choice("narrow"),
    *[Choice("matrix", tile, staging) for tile in ("small", "large") for staging in STAGINGS[1:]],
    Choice("matrix", "medium"),
]


def dtype_of(type: str) -> torch.dtype:
    return torch.float32 if type == "tf32" else getattr(torch, type)


class EmulatorError(Exception):
    """What a kernel did wrong."""


def run(
    op: str, type: str, case: Case, signal: Tensor, factor: Tensor | None, bias: Tensor | None, result: Tensor, *,
    accumulate: bool = False, negate: bool = False, device: Device = SM_86, choice: Choice = AUTOMATIC,
    library: ctypes.CDLL | None = None,
) -> None:  # fmt: skip
    """Writes to `result`. Signal and factor are kernels.h's; tensors may have any strides."""
    input_like, output_like, weight_like = {
        "conv1d": (signal, result, factor),
        "conv1d_backward_input": (result, signal, factor),
        "conv1d_backward_weight": (signal, factor, result),
        "conv1d_backward_bias": (None, signal, None),
    }[op]
    strides = [(0, 0, 0) if t is None else t.stride() for t in (input_like, output_like, weight_like)]
    numbers = [
        OPS.index(op), TYPES.index(type), *device,
        ALGORITHMS.index(choice.algorithm), TILES.index(choice.tile), STAGINGS.index(choice.staging),
        case.batch, case.in_channels, case.out_channels, case.groups, case.in_length, case.out_length,
        case.kernel_size, case.stride, case.dilation, *case.padding, PADDING_MODES.index(case.padding_mode),
        *(stride for three in strides for stride in three), accumulate, negate,
    ]  # fmt: skip
    pointers: list[int] = []
    for t in (signal, factor, bias, result):
        storage = None if t is None else t.untyped_storage()
        pointers += [0, 0, 0] if t is None else [t.data_ptr(), storage.data_ptr(), storage.nbytes()]
    error = (library or kernels()).emulated_run(_int64s(numbers), ctypes.c_int64(len(numbers)), _int64s(pointers))
    if error is not None:
        raise EmulatorError(error.decode())


@functools.cache
def kernels() -> ctypes.CDLL:
    return typed(load("all", "libconv1d_emulated.so"))


def typed(library: ctypes.CDLL) -> ctypes.CDLL:
    library.emulated_run.restype = ctypes.c_char_p
    return library


def _int64s(numbers: list[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(numbers))(*numbers)
