"""vmap rules: the new dimension B is folded into an axis that the operands have, so that one call does all of it.

An operand's axes are written with its channels split by group. Any two of INPUT, WEIGHT and OUTPUT share the groups and
one axis more: that decides where B goes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._fake import Geometry

INPUT, WEIGHT, OUTPUT, BIAS = "ngil", "goik", "ngot", "go"


def folding_rule(op: Callable[..., Tensor], left_axes: str, right_axes: str, result_axes: str) -> Callable[..., Any]:
    """The rule of an operator with two operands, which it contracts."""

    def rule(info: Any, in_dims: Any, left: Tensor, right: Tensor, extra: Any = None, *geometry: Any) -> Any:
        """`extra` is the bias of conv1d or the length that a gradient shall have."""
        geometry, size = Geometry(*geometry), info.batch_size
        left_dim, right_dim, extra_dim = (*in_dims, None)[:3]
        if extra_dim is not None and right_dim is None:  # many biases for one weight: add them to what they share
            output, _ = rule(info, in_dims[:2], left, right, None, *geometry)
            return output + extra.movedim(extra_dim, 0)[:, None, :, None], 0
        if left_dim is None and right_dim is None:
            return op(left, right, extra, *geometry), None

        axis = _folding_axis(left_axes, right_axes, result_axes, left_dim is not None, right_dim is not None)
        if left_dim is not None:
            left = _fold(left, left_dim, left_axes, axis, geometry.groups)
        if right_dim is not None:
            right = _fold(right, right_dim, right_axes, axis, geometry.groups)
            if isinstance(extra, Tensor):
                extra = extra.expand(size, -1) if extra_dim is None else extra.movedim(extra_dim, 0)
                extra = _fold(extra, 0, BIAS, axis, geometry.groups)
        groups = geometry.groups * (size if axis == "g" else 1)
        result = op(left, right, extra, *geometry._replace(groups=groups))
        return _unfold(result, size, result_axes, axis, geometry.groups), 0

    return rule


def bias_rule(op: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """The rule of conv1d_backward_bias: B folded into the channels."""

    def rule(info: Any, in_dims: Any, grad_output: Tensor) -> tuple[Tensor, int]:
        sums = op(_fold(grad_output, in_dims[0], OUTPUT, "o", groups=1))
        return _unfold(sums, info.batch_size, BIAS, "o", groups=1), 0

    return rule


def _folding_axis(left: str, right: str, result: str, left_has_batch: bool, right_has_batch: bool) -> str:
    """The groups if both operands have a B; else the other axis that the one with a B shares with the result."""
    if left_has_batch and right_has_batch:
        return "g"
    (axis,) = set(left if left_has_batch else right) & set(result) - {"g"}
    return axis


def _fold(tensor: Tensor, dim: int, axes: str, axis: str, groups: int) -> Tensor:
    """Takes B, which is dimension `dim` of `tensor`, into `axis`, as its outer part."""
    group, place = axes.index("g"), axes.index(axis)
    tensor = tensor.movedim(dim, 0)
    tensor = torch.unflatten(tensor, group + 1, (groups, tensor.shape[group + 1] // groups))
    return tensor.movedim(0, place).flatten(place, place + 1).flatten(group, group + 1)


def _unfold(tensor: Tensor, size: int, axes: str, axis: str, groups: int) -> Tensor:
    """Undoes `_fold`: returns `tensor` with B, of the given size, as dimension 0."""
    group, place = axes.index("g"), axes.index(axis)
    groups *= size if axis == "g" else 1
    tensor = torch.unflatten(tensor, group, (groups, tensor.shape[group] // groups))
    tensor = torch.unflatten(tensor, place, (size, tensor.shape[place] // size)).movedim(place, 0)
    return tensor.flatten(group + 1, group + 2)
