"""Fake kernels: what the operators return, without data; the sizes may be symbolic.

Shapes and strides are those of the real kernels, and RuntimeError is raised where those raise it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """The trailing arguments of the operators. The dispatcher leaves out those which have their default."""

    stride: int = 1
    padding_left: int = 0
    padding_right: int = 0
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"


def _check(condition: bool, message: str) -> None:
    torch._check(condition, lambda: message)  # type: ignore[no-untyped-call]


def _check_operands(*operands: Tensor) -> None:
    for operand in operands:
        _check(operand.dim() == 3, f"Expected 3-dimensional operands, but got one of size {list(operand.shape)}")
        _check(operand.dtype == operands[0].dtype, f"expected type {operands[0].dtype} but found {operand.dtype}")


def _check_shape(tensor: Tensor, shape: Sequence[int]) -> None:
    message = f"Expected a tensor of size {list(shape)}, but got one of size {list(tensor.shape)}"
    _check(tensor.dim() == len(shape), message)
    for actual, expected in zip(tensor.shape, shape, strict=True):
        _check(actual == expected, message)


def _output_shape(input_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry) -> tuple[int, int, int]:
    """[N, C_out, L_out]."""
    batch, in_channels, in_length = input_shape
    out_channels, group_channels, kernel_size = weight_shape
    stride, padding_left, padding_right, dilation, groups, _ = geometry
    _check(stride > 0, "non-positive stride is not supported")
    _check(padding_left >= 0 and padding_right >= 0, "negative padding is not supported")
    _check(dilation > 0, f"dilation should be greater than zero, but got {dilation}")
    _check(groups > 0, "non-positive groups is not supported")
    _check(
        in_channels == groups * group_channels and out_channels % groups == 0,
        f"Given groups={groups}, weight of size {list(weight_shape)}, expected input{list(input_shape)} to have "
        f"{groups * group_channels} channels, but got {in_channels} channels instead",
    )
    padded = padding_left + in_length + padding_right
    extent = dilation * (kernel_size - 1) + 1
    _check(
        padded >= extent,
        f"Calculated padded input size per channel: ({padded}). Kernel size: ({extent}). "
        "Kernel size can't be greater than actual input size",
    )
    return batch, out_channels, (padded - extent) // stride + 1


def _empty(shape: Sequence[int], like: Tensor, weight: Tensor) -> Tensor:
    """[N, C, L], with the channels innermost where torch takes the weight for channels-last, as is_channels_last in
    csrc/tensors.cpp says, and the batch is not empty."""
    batch, channels, length = shape
    channels_last = torch._prims_common.suggest_memory_format(weight.unsqueeze(2)) == torch.channels_last
    if channels_last and weight.shape[1] * weight.shape[2] > 1 and batch > 0:
        return like.new_empty((batch, length, channels)).transpose(1, 2)
    return like.new_empty(shape)


def conv1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any) -> Tensor:
    _check_operands(input, weight)
    if bias is not None:
        _check_shape(bias, weight.shape[:1])
    return _empty(_output_shape(input.shape, weight.shape, Geometry(*geometry)), input, weight)


def conv1d_backward_input(grad_output: Tensor, weight: Tensor, in_length: int, *geometry: Any) -> Tensor:
    _check_operands(grad_output, weight)
    input_shape = (grad_output.shape[0], Geometry(*geometry).groups * weight.shape[1], in_length)
    _check_shape(grad_output, _output_shape(input_shape, weight.shape, Geometry(*geometry)))
    if weight.is_complex():  # torch puts complex gradients together from real ones, in a fresh tensor
        return grad_output.new_empty(input_shape)
    return _empty(input_shape, grad_output, weight)


def conv1d_backward_weight(grad_output: Tensor, input: Tensor, kernel_size: int, *geometry: Any) -> Tensor:
    _check_operands(grad_output, input)
    weight_shape = (grad_output.shape[1], input.shape[1] // Geometry(*geometry).groups, kernel_size)
    _check_shape(grad_output, _output_shape(input.shape, weight_shape, Geometry(*geometry)))
    return grad_output.new_empty(weight_shape)


def conv1d_backward_bias(grad_output: Tensor) -> Tensor:
    _check_operands(grad_output)
    return grad_output.new_empty(grad_output.shape[1:2])
