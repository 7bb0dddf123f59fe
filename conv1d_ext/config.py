"""What was built, what is in use, and whether it computes correctly: the first thing to ask for in a bug report."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _C, __version__
from .backends import cuda_arithmetic
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
        "instruction sets": f"{isa} in use, supported: {_C.supported_isas()}, built: {build['isas']}",
        "threads": str(torch.get_num_threads()),
        "OpenMP runtime": ", ".join(_openmp_runtimes()) or "unknown",
        "CUDA kernels": _cuda(build["cuda"]),
        "self-check": verdict,
    }
    print("\n".join(f"{name:18}  {value}" for name, value in rows.items()))
    return passed


def _cuda(architectures: str) -> str:
    """What was built, whether it is on, and for each GPU whether it is served."""
    if not architectures:
        return "not built: CUDA tensors go to torch's own conv1d"
    switch = "on" if _C.cuda_enabled() else "off: CUDA tensors go to torch's own conv1d"
    lines = [f"built for {architectures}, switched {switch}"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        served = [name for dtype in _DTYPES[:4] if (name := cuda_arithmetic(dtype, index))]
        lines.append(f"{gpu.name} (sm_{gpu.major}{gpu.minor}): {', '.join(served) or 'too old, left to torch'}")
    return "; ".join(lines if lines[1:] else [*lines, "no GPU found"])


def _openmp_runtimes() -> list[str]:
    """The OpenMP libraries in this process; more than one is a mistake that costs speed or worse."""
    maps = Path("/proc/self/maps")
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.open()} if maps.exists() else set()
    return sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp")))


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64)
_SHAPES = (  # in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
    (16, 24, 3, 1, (1, 1), 1, 1, "replicate"),
    (6, 9, 5, 2, (3, 2), 2, 3, "circular"),
    (8, 8, 4, 1, (2, 1), 1, 8, "reflect"),
    (1, 17, 10, 5, (0, 0), 1, 1, "reflect"),
)


def _check() -> tuple[bool, str]:
    """Compares every dtype with torch's float64."""
    errors = {f"{dtype}, {shape}": _error(dtype, *shape) for dtype in _DTYPES for shape in _SHAPES}
    # Rounding a result to its dtype costs half a unit, short sums in that dtype a few; a wrong result many, or is NaN.
    wrong = [f"{case}: {error:.1f}" for case, error in errors.items() if not error < 8]
    if wrong:
        return False, "\n  ".join(["FAILED, off by so many units in the last place:", *wrong])
    return True, f"passed, off by {max(errors.values()):.1f} units in the last place at most"


def _error(
    dtype: torch.dtype,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> float:
    """How far the output or a gradient is off, in units in the last place of its largest number."""

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv1d_padded(x, w, b, stride, padding, dilation, groups, padding_mode)

    def torchs(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch_conv1d(F.pad(x, padding, padding_mode), w, b, stride, 0, dilation, groups)

    def results(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            operands = [operand.requires_grad_() for operand in operands]
            output = function(*operands)
            return [output, *torch.autograd.grad(output, operands, torch.ones_like(output))]

    generator = torch.Generator().manual_seed(0)
    exact = torch.complex128 if dtype.is_complex else torch.float64
    sizes = (2, in_channels, 61), (out_channels, in_channels // groups, kernel_size), (out_channels,)
    operands = [torch.randn(size, generator=generator, dtype=exact).to(dtype) for size in sizes]
    pairs = zip(results(ours, operands), results(torchs, [operand.to(exact) for operand in operands]), strict=True)
    errors = torch.stack([(actual - expected).abs().max() / expected.abs().max() for actual, expected in pairs])
    return errors.max().item() / torch.finfo(dtype).eps
