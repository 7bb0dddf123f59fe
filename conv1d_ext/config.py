"""What was built, what is in use, and whether it computes correctly: the first thing to ask for in a bug report."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _C, __version__
from .functional import conv1d_padded, torch_conv1d

__all__ = ["show_config"]


def show_config() -> bool:
    """Prints versions, instruction sets, threads and libraries, then checks the kernels against torch in float64.

    Returns:
        Whether the kernels passed the check, which the last line says as well.
    """
    build = _C.build_info()
    isa = _C.isa() + (f" (CONV1D_EXT_ISA={wish})" if (wish := os.environ.get("CONV1D_EXT_ISA")) else "")
    passed, verdict = _check()
    rows = {
        "conv1d_ext": f"{__version__}, {Path(__file__).parent}",
        "torch": f"{torch.__version__}, built for {build['torch']}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "compiler": f"{build['compiler']}, OpenMP {build['openmp']}",
        "instruction sets": f"{isa} in use; supported: {' '.join(_C.supported_isas())}; built: {' '.join(build['isas'])}",
        "threads": str(torch.get_num_threads()),
        "OpenMP runtime": ", ".join(_openmp_runtimes()) or "unknown",
        "CUDA architectures": "none built: CUDA tensors go to torch's own conv1d",
        "self-check": verdict,
    }
    print("\n".join(f"{name:18}  {value}" for name, value in rows.items()))
    return passed


def _openmp_runtimes() -> list[str]:
    """The OpenMP libraries in this process; more than one is a mistake that costs speed or worse."""
    maps = Path("/proc/self/maps")
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.open()} if maps.exists() else set()
    return sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp")))


def _check() -> tuple[bool, str]:
    """Compares forward and gradients of every dtype with torch's in double precision."""
    shapes = (  # in_channels, out_channels, kernel_size, and conv1d_padded's geometry
        (16, 24, 3, ([1], [1, 1], [1], 1, "replicate")),
        (6, 9, 5, ([2], [3, 2], [2], 3, "circular")),
        (8, 8, 4, ([1], [2, 1], [1], 8, "reflect")),
        (1, 17, 10, ([5], [0, 0], [1], 1, "reflect")),
    )
    generator = torch.Generator().manual_seed(0)
    worst: tuple[float, str] = (0.0, "")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64):
        exact = torch.complex128 if dtype.is_complex else torch.float64
        for in_channels, out_channels, kernel_size, geometry in shapes:
            sizes = (2, in_channels, 61), (out_channels, in_channels // geometry[3], kernel_size), (out_channels,)
            operands = [torch.randn(size, generator=generator, dtype=exact).to(dtype) for size in sizes]
            ours = _forward_and_gradients(conv1d_padded, operands, geometry)
            torchs = _forward_and_gradients(_torch_conv1d_padded, [x.to(exact) for x in operands], geometry)
            for name, actual, expected in zip(_RESULTS, ours, torchs, strict=True):
                error = ((actual - expected).abs().max() / expected.abs().max()).item() / torch.finfo(dtype).eps
                worst = max(worst, (error, f"{dtype} {name} of {(in_channels, out_channels, kernel_size, *geometry)}"))
    # A result rounded to its dtype is off by half a unit, short sums in that dtype by a few; anything wrong by far more.
    passed = worst[0] < 8
    verdict = f"{'passed' if passed else 'FAILED'}: off by {worst[0]:.1f} units in the last place at most"
    return passed, verdict if passed else f"{verdict}, in {worst[1]}"


_RESULTS = ("output", "input gradient", "weight gradient", "bias gradient")


def _forward_and_gradients(
    function: Callable[..., Tensor], operands: list[Tensor], geometry: tuple[object, ...]
) -> list[Tensor]:
    with torch.enable_grad():
        operands = [operand.requires_grad_() for operand in operands]
        output = function(*operands, *geometry)
        return [output, *torch.autograd.grad(output, operands, torch.ones_like(output))]


def _torch_conv1d_padded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    return torch_conv1d(F.pad(input, padding, padding_mode), weight, bias, stride, 0, dilation, groups)
