"""What a layer costs and how it is computed: the plan, the work, the memory traffic, and which of them is the limit."""

import math
import time
from collections.abc import Sequence
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from . import _C
from .backends import cuda_arithmetic
from .functional import is_foreign

__all__ = ["explain"]

_OPERATORS = {
    "forward": "conv1d",
    "input gradient": "conv1d_backward_input",
    "weight gradient": "conv1d_backward_weight",
}
# Of fours, by the taps of a transform, of sums over 256 channels and more (csrc/cpu/toom_cook_inl.h); those of pairs
# are the direct kernels', or little more.
_TOOM_COOK_ERRORS = {2: 5e-7, 3: 6e-7, 4: 1e-6, 5: 1.3e-6}
_COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64)


def explain(layer: torch.nn.Conv1d, input: Tensor | Sequence[int]) -> None:
    """Prints how this package computes a layer, or why torch does it instead.

    For the forward pass and both gradients: the floating-point operations, the bytes of the operands (each read or
    written once), the least time that the FMA units and the memory of this machine allow for that with
    torch.get_num_threads() threads, and the kernels' plan for contiguous tensors (csrc/cpu/plan.h says what its fields
    are). Speed of FMA and memory are measured here, the first call takes a fraction of a second. Of a layer on a GPU,
    the arithmetic, the operations and the bytes alone.

    Args:
        layer: a torch.nn.Conv1d or conv1d_ext.Conv1d; it is not run.
        input: ``[N, C_in, L_in]`` or ``[C_in, L_in]``, or such a shape.

    Raises:
        ValueError: the input's shape does not fit the layer, or is empty.
    """
    shape = tuple(input.shape if isinstance(input, Tensor) else input)
    sizes = _sizes(layer, shape)
    dtype = layer.weight.dtype
    print(f"{layer}\non {list(shape)}, {str(dtype).removeprefix('torch.')}")
    reason = _not_computed_here(layer, input)
    if reason:
        print(f"computed by torch's own conv1d: {reason}")
        return
    real = dtype.to_real() if dtype.is_complex else dtype
    parts = 4 if dtype.is_complex else 1  # products of real and imaginary parts
    flops = (
        2
        * parts
        * sizes["batch"]
        * sizes["out_channels"]
        * _out_length(sizes)
        * (layer.weight.numel() // layer.out_channels)
    )
    nbytes = _bytes(layer, sizes)
    if layer.weight.device.type == "cuda":
        arithmetic = cuda_arithmetic(dtype, layer.weight.device)
        if arithmetic == "TF32" and max(layer.in_channels, layer.out_channels) < 16 * layer.groups:
            arithmetic = "float32"  # kFewChannels in csrc/cuda/run_inl.cuh: no matrix units for those
        print(f"computed by the CUDA kernels in {arithmetic}: {flops / 1e6:,.1f} MFLOP, {nbytes / 1e6:,.1f} MB a pass")
        return
    threads = torch.get_num_threads()
    peak = _fma_peak(real) * threads
    bandwidth = _copy_bandwidth(threads)
    print(f"{_C.isa()}, {threads} thread{'s' * (threads > 1)}: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s")
    columns: list[dict[str, str]] = []
    for name, operator in _OPERATORS.items():
        plan = _C.plan(
            operator, str(real).removeprefix("torch."), **sizes, padding_mode=layer.padding_mode, accumulate=parts > 1
        )
        limits = {"FMA": flops / peak, "memory": nbytes / bandwidth}
        if plan["algorithm"] == "amx":
            # 16 times the products of the FMA units a clock, of which a float32 one takes six (amx_plan.h).
            products = 6 if plan["pieces"] == 3 else 1
            del limits["FMA"]
            limits["AMX"] = flops * products / (16 * _fma_peak(torch.float32) * threads)
        limit = max(limits, key=limits.__getitem__)
        cells = {
            "": name,
            "MFLOP": f"{flops / 1e6:,.1f}",
            "MB": f"{nbytes / 1e6:,.1f}",
            "at least": f"{limits[limit] * 1e3:.3g} ms ({limit})",
        }
        if "multiplications" in plan:
            cells["at least"] = "-"  # the limits are those of the direct method
            plan["multiplications"] = f"{plan['multiplications'] / (flops / 2):.1%} of direct"
            if plan["algorithm"] == "fft":
                plan["error"] = f"{_fft_error(real, plan['fft_length']):.0e} of the norm"
            elif plan["form"] == "fours":
                plan["error"] = f"{_TOOM_COOK_ERRORS[plan['taps']]:.0e} of the norm"
            elif plan["form"] == "pairs" and sizes["kernel_size"] % sizes["stride"] == 0:
                plan["error"] = "as of direct sums"
            else:
                plan["error"] = "1.1 to 1.3 x direct"
        columns.append(cells | {field.replace("_", " "): str(value) for field, value in plan.items()})
    if parts > 1:
        print(f"as {parts} real convolutions, of this plan each:")
    for field in dict.fromkeys(chain.from_iterable(columns)):
        print(f"{field:16}" + "".join(f"{column.get(field, '-'):>24}" for column in columns))


def _sizes(layer: torch.nn.Conv1d, shape: Sequence[int]) -> dict[str, int]:
    """By the names of _C.plan."""
    if len(shape) not in (2, 3) or shape[-2] != layer.in_channels:
        expected = f"[N, {layer.in_channels}, L] or [{layer.in_channels}, L]"
        raise ValueError(f"expected an input of shape {expected}, but got {list(shape)}")
    if 0 in shape:
        raise ValueError(f"an input of shape {list(shape)} leaves nothing to compute")
    left, right = layer._reversed_padding_repeated_twice[:2]
    sizes = {
        "batch": shape[0] if len(shape) == 3 else 1,
        "in_channels": layer.in_channels,
        "in_length": shape[-1] + min(left, 0) + min(right, 0),  # negative padding crops
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size[0],
        "stride": layer.stride[0],
        "padding_left": max(left, 0),
        "padding_right": max(right, 0),
        "dilation": layer.dilation[0],
        "groups": layer.groups,
    }
    if _out_length(sizes) < 1:
        raise ValueError(f"an input of length {shape[-1]} is too short for this layer")
    return sizes


def _out_length(sizes: dict[str, int]) -> int:
    reach = sizes["dilation"] * (sizes["kernel_size"] - 1) + 1
    return (sizes["in_length"] + sizes["padding_left"] + sizes["padding_right"] - reach) // sizes["stride"] + 1


def _bytes(layer: torch.nn.Conv1d, sizes: dict[str, int]) -> int:
    """Of input, weight and output, or their gradients."""
    elements = sizes["batch"] * sizes["in_channels"] * sizes["in_length"] + layer.weight.numel()
    elements += sizes["batch"] * sizes["out_channels"] * _out_length(sizes)
    return elements * layer.weight.element_size()


def _not_computed_here(layer: torch.nn.Conv1d, input: Tensor | Sequence[int]) -> str | None:
    tensors = [layer.weight, *([input] if isinstance(input, Tensor) else [])]
    for tensor in tensors:
        if is_foreign(tensor):
            return f"{type(tensor).__name__} handles operators itself"
        if tensor.device.type == "cuda" and (reason := _no_cuda(tensor)):
            return reason
        if tensor.device.type not in ("cpu", "cuda"):
            return f"there are no kernels for {tensor.device.type}"
        if tensor.dtype not in _COMPUTED:
            return f"there are no kernels for {tensor.dtype}"
        if tensor.layout != torch.strided:
            return f"there are no kernels for {tensor.layout}"
    return None


def _no_cuda(tensor: Tensor) -> str | None:
    """Why the CUDA kernels cannot compute on the tensor's GPU."""
    if not _C.build_info()["cuda"]:
        return "the CUDA kernels were not built"
    if not _C.cuda_enabled():
        return "conv1d_ext.backends.cuda.enabled is False"
    if not torch.cuda.is_available():
        return "no GPU found"
    if tensor.dtype in _COMPUTED and cuda_arithmetic(tensor.dtype, tensor.device) is None:
        return f"there are no kernels for {tensor.dtype} on this GPU"
    return None


def _fft_error(dtype: torch.dtype, length: int) -> float:
    """Of a result, about: each level of the three transforms rounds (measured in benchmarks/NOTES.md)."""
    return 0.45 * torch.finfo(dtype).eps * math.sqrt(3 * math.log2(length))


def _fma_peak(dtype: torch.dtype) -> float:
    """FLOP/s of one core."""
    pairs = dtype == torch.bfloat16 and _C.isa() in ("avx512_bf16", "amx")
    return _float32_peak(_C.isa()) * (2 if pairs else 0.5 if dtype == torch.float64 else 1)


@cache
def _float32_peak(isa: str) -> float:
    return max(_C.fma_peak() for _ in range(3)) * 1e9


@cache
def _copy_bandwidth(threads: int) -> float:
    """Bytes/s, read and written, of a copy too large for the caches; the best of a few."""
    source = torch.ones(64 << 20, dtype=torch.uint8)
    destination = torch.ones_like(source)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        destination.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)
