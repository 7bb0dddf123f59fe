"""The GPU that these tests need: a file that imports this is skipped, with the reason, where there is none."""

import pytest
import torch
from cases import Operands

from conv1d_ext import _C
from conv1d_ext.backends import cuda_arithmetic

DEVICE = "cuda"


def _missing() -> str | None:
    if not _C.build_info()["cuda"]:
        return "conv1d_ext was built without CUDA kernels"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU here"
    if cuda_arithmetic(torch.float32, torch.cuda.current_device()) is None:
        return f"the CUDA kernels, built for {_C.build_info()['cuda']}, do not run on {torch.cuda.get_device_name()}"
    return None


if reason := _missing():
    pytest.skip(reason, allow_module_level=True)


def on_gpu(operands: Operands) -> Operands:
    return Operands(*(t if t is None else t.to(DEVICE) for t in operands))


def needs(dtype: torch.dtype) -> None:
    if cuda_arithmetic(dtype, torch.cuda.current_device()) is None:
        pytest.skip(f"on this GPU {dtype} is torch's")
