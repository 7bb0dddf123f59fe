"""The operators as Python sees them: loading `_C` defines `torch.ops.conv1d_ext`, this adds what torch wants in Python.

For each operator a fake kernel (shapes and strides without data, sizes may be symbolic), a vmap rule and a FLOP
formula. Derivatives and autocast are in C++ (csrc/autograd.cpp, csrc/autocast.cpp).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import register_fake, register_vmap
from torch.utils.flop_counter import register_flop_formula

from conv1d_ext import _C  # noqa: F401  defines the operators

_ops = torch.ops.conv1d_ext


class Geometry(NamedTuple):
    """The trailing arguments of the operators. The dispatcher leaves out those which have their default."""

    stride: int = 1
    padding_left: int = 0
    padding_right: int = 0
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"


# Fake kernels


def _output_shape(input_shape: tuple, weight_shape: tuple, geometry: Geometry) -> tuple:
    """Returns [N, C_out, L_out]; raises RuntimeError where the kernels do."""
    batch, in_channels, in_length = input_shape
    out_channels, group_channels, kernel_size = weight_shape
    stride, padding_left, padding_right, dilation, groups, _ = geometry
    torch._check(stride > 0, lambda: "non-positive stride is not supported")
    torch._check(dilation > 0, lambda: "dilation should be greater than zero")
    torch._check(groups > 0, lambda: "non-positive groups is not supported")
    torch._check(
        in_channels == groups * group_channels and out_channels % groups == 0,
        lambda: f"Given groups={groups}, weight of size {list(weight_shape)}, expected input{list(input_shape)} to "
        f"have {groups * group_channels} channels, but got {in_channels} channels instead",
    )
    padded = padding_left + in_length + padding_right
    extent = dilation * (kernel_size - 1) + 1
    torch._check(
        padded >= extent,
        lambda: f"Calculated padded input size per channel: ({padded}). Kernel size: ({extent}). "
        "Kernel size can't be greater than actual input size",
    )
    return batch, out_channels, (padded - extent) // stride + 1


def _check_operands(*operands: Tensor) -> None:
    for operand in operands:
        torch._check(operand.dim() == 3, lambda: f"Expected 3D operands, but got one of size {list(operand.shape)}")
        torch._check(
            operand.dtype == operands[0].dtype,
            lambda: f"Operands should have the same type, but got {operands[0].dtype} and {operand.dtype}",
        )


def _check_shape(tensor: Tensor, shape: tuple) -> None:
    for dim in range(max(tensor.dim(), len(shape))):
        torch._check(
            tensor.dim() == len(shape) and tensor.shape[dim] == shape[dim],
            lambda: f"Expected a tensor of size {list(shape)}, but got one of size {list(tensor.shape)}",
        )


def _empty(shape: tuple, like: Tensor, weight: Tensor) -> Tensor:
    """[N, C, L], with the channels innermost if torch takes the weight for channels-last."""
    if torch._prims_common.suggest_memory_format(weight.unsqueeze(2)) == torch.channels_last:
        batch, channels, length = shape
        return like.new_empty((batch, length, channels)).transpose(1, 2)
    return like.new_empty(shape)


@register_fake("conv1d_ext::conv1d")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry) -> Tensor:
    _check_operands(input, weight)
    if bias is not None:
        _check_shape(bias, weight.shape[:1])
    return _empty(_output_shape(input.shape, weight.shape, Geometry(*geometry)), input, weight)


@register_fake("conv1d_ext::conv1d_backward_input")
def _(grad_output: Tensor, weight: Tensor, in_length: int, *geometry) -> Tensor:
    _check_operands(grad_output, weight)
    input_shape = (grad_output.shape[0], Geometry(*geometry).groups * weight.shape[1], in_length)
    _check_shape(grad_output, _output_shape(input_shape, weight.shape, Geometry(*geometry)))
    if weight.is_complex():  # torch puts complex gradients together from real ones, in a fresh tensor
        return grad_output.new_empty(input_shape)
    return _empty(input_shape, grad_output, weight)


@register_fake("conv1d_ext::conv1d_backward_weight")
def _(grad_output: Tensor, input: Tensor, kernel_size: int, *geometry) -> Tensor:
    _check_operands(grad_output, input)
    weight_shape = (grad_output.shape[1], input.shape[1] // Geometry(*geometry).groups, kernel_size)
    _check_shape(grad_output, _output_shape(input.shape, weight_shape, Geometry(*geometry)))
    return grad_output.new_empty(weight_shape)


@register_fake("conv1d_ext::conv1d_backward_bias")
def _(grad_output: Tensor) -> Tensor:
    _check_operands(grad_output)
    return grad_output.new_empty(grad_output.shape[1:2])


# vmap rules. The new dimension B is folded into an axis that the operands have, so that one call does all of it.

# The axes of the operands with the channels split by group. Any two of the first three share g and one more.
_INPUT, _WEIGHT, _OUTPUT, _BIAS = "ngil", "goik", "ngot", "go"


def _folding_axis(left: str, right: str, result: str, in_dims: tuple) -> str:
    """Where B goes: into the groups, or, if one operand has no B, into the axis that it doesn't share with the result."""
    if None not in in_dims[:2]:
        return "g"
    (axis,) = set(right if in_dims[0] is None else left) & set(result) - {"g"}
    return axis


def _fold(tensor: Tensor, dim: int, axes: str, axis: str, groups: int) -> Tensor:
    """Takes B, which is dimension `dim`, into `axis`, as its outer part."""
    group, place = axes.index("g"), axes.index(axis)
    tensor = tensor.movedim(dim, 0)
    tensor = tensor.unflatten(group + 1, (groups, tensor.shape[group + 1] // groups))
    return tensor.movedim(0, place).flatten(place, place + 1).flatten(group, group + 1)


def _unfold(tensor: Tensor, size: int, axes: str, axis: str, groups: int) -> Tensor:
    """Undoes `_fold`, with B as dimension 0."""
    group, place = axes.index("g"), axes.index(axis)
    groups *= size if axis == "g" else 1
    tensor = tensor.unflatten(group, (groups, tensor.shape[group] // groups))
    tensor = tensor.unflatten(place, (size, tensor.shape[place] // size)).movedim(place, 0)
    return tensor.flatten(group + 1, group + 2)


def _register_vmap(op, left_axes: str, right_axes: str, result_axes: str) -> None:
    def rule(info, in_dims, left, right, extra=None, *geometry):
        """`extra` is conv1d's bias or the length that a gradient has."""
        geometry, size = Geometry(*geometry), info.batch_size
        left_dim, right_dim, extra_dim = (*in_dims, None)[:3]
        if extra_dim is not None and right_dim is None:  # a bias of its own for each, but not a weight: add it last
            output, _ = rule(info, in_dims[:2], left, right, None, *geometry)
            return output + extra.movedim(extra_dim, 0)[:, None, :, None], 0
        if left_dim is None and right_dim is None:
            return op(left, right, extra, *geometry), None

        axis = _folding_axis(left_axes, right_axes, result_axes, in_dims)
        if left_dim is not None:
            left = _fold(left, left_dim, left_axes, axis, geometry.groups)
        if right_dim is not None:
            right = _fold(right, right_dim, right_axes, axis, geometry.groups)
            if isinstance(extra, Tensor):
                extra = extra.expand(size, -1) if extra_dim is None else extra.movedim(extra_dim, 0)
                extra = _fold(extra, 0, _BIAS, axis, geometry.groups)
        groups = geometry.groups * (size if axis == "g" else 1)
        result = op(left, right, extra, *geometry._replace(groups=groups))
        return _unfold(result, size, result_axes, axis, geometry.groups), 0

    register_vmap(op.default, rule)


_register_vmap(_ops.conv1d, _INPUT, _WEIGHT, _OUTPUT)
_register_vmap(_ops.conv1d_backward_input, _OUTPUT, _WEIGHT, _INPUT)
_register_vmap(_ops.conv1d_backward_weight, _OUTPUT, _INPUT, _WEIGHT)


@register_vmap("conv1d_ext::conv1d_backward_bias")
def _(info, in_dims, grad_output: Tensor) -> tuple[Tensor, int]:
    folded = _fold(grad_output, in_dims[0], _OUTPUT, "o", groups=1)
    return _unfold(_ops.conv1d_backward_bias(folded), info.batch_size, _BIAS, "o", groups=1), 0


# FLOPs as torch counts them: two for a product, padding and bias left out, complex products as three real ones.


def _flops(output: Tensor, weight_elements: int) -> int:
    batch, _, length = output.shape
    return 2 * batch * length * weight_elements * (3 if output.is_complex() else 1)


@register_flop_formula(_ops.conv1d, get_raw=True)
def _(input: Tensor, weight: Tensor, *_, out_val: Tensor, **__) -> int:
    return _flops(out_val, weight.numel())


@register_flop_formula(_ops.conv1d_backward_input, get_raw=True)
def _(grad_output: Tensor, weight: Tensor, *_, **__) -> int:
    return _flops(grad_output, weight.numel())


@register_flop_formula(_ops.conv1d_backward_weight, get_raw=True)
def _(grad_output: Tensor, input: Tensor, kernel_size: int, *_, **__) -> int:
    return _flops(grad_output, grad_output.shape[1] * input.shape[1] * kernel_size)  # torch leaves out the groups here
