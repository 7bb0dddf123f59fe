"""conv1d with the arguments of torch.nn.functional.conv1d.

Eager calls go straight to C++ (csrc/python.cpp). Dynamo and TorchScript cannot look into a C function: for them the
same steps stand here in Python, and end in the operator. While torch.onnx.export looks on, all is left to torch's own
operators, since a plain Conv is what ONNX knows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import _C, _ops  # noqa: F401  (_ops completes the operators)

__all__ = ["conv1d"]

torch_conv1d = torch.conv1d  # kept for the time when patch_torch() has replaced it


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves a signal of several channels: torch.nn.functional.conv1d, with this package's kernels.

    ``output[n, o, t] = bias[o] + sum over c, k of weight[o, c, k] * input[n, c, t * stride + k * dilation - padding]``

    Args:
        input: ``[N, C_in, L_in]``, or ``[C_in, L_in]`` without a batch. float64, float32, bfloat16, float16, complex64
            or complex128; whatever else torch.nn.functional.conv1d takes (integers, other devices, tensor subclasses)
            is computed by it.
        weight: ``[C_out, C_in / groups, K]``, of the input's dtype.
        bias: ``[C_out]``, of the input's dtype.
        stride: distance between the positions that two neighbouring outputs start from; an int or ``(int,)``.
        padding: zeros on both sides; an int, ``(int,)``, ``'valid'`` for none, or ``'same'`` for as many as keep the
            length, the larger half on the right.
        dilation: distance between the taps of the kernel; an int or ``(int,)``.
        groups: input and output channels are split into this many groups, which do not see each other.

    Returns:
        ``[N, C_out, L_out]`` or ``[C_out, L_out]``, where
        ``L_out = (L_in + 2 * padding - dilation * (K - 1) - 1) // stride + 1``.

    Raises:
        TypeError: an argument is of the wrong type.
        RuntimeError: shapes, dtypes or devices do not fit, or stride, padding, dilation or groups are out of range.
    """
    if torch.compiler.is_dynamo_compiling():
        if _any_wrapper(input, weight, bias):
            return torch_conv1d(input, weight, bias, stride, padding, dilation, groups)
        sides = _both_sides(padding, weight, stride, dilation)
        return conv1d_padded(input, weight, bias, _single(stride), sides, _single(dilation), groups, "zeros")
    return _C.conv1d(input, weight, bias, stride, padding, dilation, groups)


def conv1d_padded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """pad_then_conv1d in one kernel, without the padded copy. Dynamo and TorchScript can follow it."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if not torch.compiler.is_dynamo_compiling():
            return _C.conv1d_padded(input, weight, bias, stride, padding, dilation, groups, padding_mode)
        if _any_wrapper(input, weight, bias):
            return pad_then_conv1d(input, weight, bias, stride, padding, dilation, groups, padding_mode)
    left, right = padding
    if padding_mode != "zeros" and (left < 0 or right < 0):
        input, left, right = F.pad(input, [left, right], padding_mode), 0, 0
    batched = input.unsqueeze(0) if input.dim() == 2 else input
    output: Tensor = torch.ops.conv1d_ext.conv1d(
        batched, weight, bias, stride, left, right, dilation, groups, padding_mode
    )
    return output.squeeze(0) if input.dim() == 2 else output


def pad_then_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """What torch.nn.Conv1d does with a padding mode. Tensor subclasses need it, and padding below zero, which crops."""
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return conv1d(F.pad(input, padding, mode), weight, bias, stride, 0, dilation, groups)


def traced_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """What torch.jit.trace records of a call, which has got a batch: the operator, or for ONNX torch's own."""
    left, right = padding
    if not torch.onnx.is_in_onnx_export():
        output: Tensor = torch.ops.conv1d_ext.conv1d(
            input, weight, bias, stride, left, right, dilation, groups, padding_mode
        )
        return output
    if padding_mode != "zeros" or left != right:
        mode = "constant" if padding_mode == "zeros" else padding_mode
        input, left = F.pad(input, [left, right], mode), 0
    return torch_conv1d(input, weight, bias, stride, left, dilation, groups)


def is_foreign(operand: Tensor) -> bool:
    """Whether this tensor's class handles operators itself; if so, it may know torch's conv1d and no other."""
    cls = type(operand)
    if issubclass(cls, FakeTensor | FunctionalTensor):  # the compiler's own, which follow every operator
        return torch.onnx.is_in_onnx_export()
    handler = getattr(cls.__torch_function__, "__func__", cls.__torch_function__)
    inherited = torch._C._disabled_torch_function_impl, Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    return cls.__torch_dispatch__ is not Tensor.__torch_dispatch__ or handler not in inherited


def _any_wrapper(*operands: Tensor | None) -> bool:
    return any(operand is not None and is_traceable_wrapper_subclass(operand) for operand in operands)


def _both_sides(
    padding: int | Sequence[int] | str, weight: Tensor, stride: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[int, int]:
    if not isinstance(padding, str):
        return _single(padding), _single(padding)
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if _single(stride) != 1:
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total = _single(dilation) * (weight.shape[-1] - 1)
    return total // 2, total - total // 2


def _single(value: int | Sequence[int]) -> int:
    if not isinstance(value, Sequence):
        return value
    if len(value) != 1:
        raise RuntimeError(f"expected a single integer value or a list of 1 values, but got {list(value)}")
    return value[0]
