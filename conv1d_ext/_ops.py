"""The operators, complete: loading `_C` defines `torch.ops.conv1d_ext`, this adds what torch wants to have in Python.

That is for each operator a fake kernel, a vmap rule and a FLOP formula. Derivatives and autocast are in C++
(csrc/autograd.cpp, csrc/autocast.cpp).
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake, register_vmap
from torch.utils.flop_counter import register_flop_formula

from . import _C, _fake  # noqa: F401  (_C defines the operators)
from ._vmap import INPUT, OUTPUT, WEIGHT, bias_rule, folding_rule

_ops = torch.ops.conv1d_ext

register_fake("conv1d_ext::conv1d", _fake.conv1d)
register_fake("conv1d_ext::conv1d_backward_input", _fake.conv1d_backward_input)
register_fake("conv1d_ext::conv1d_backward_weight", _fake.conv1d_backward_weight)
register_fake("conv1d_ext::conv1d_backward_bias", _fake.conv1d_backward_bias)

register_vmap("conv1d_ext::conv1d", folding_rule(_ops.conv1d, INPUT, WEIGHT, OUTPUT))
register_vmap("conv1d_ext::conv1d_backward_input", folding_rule(_ops.conv1d_backward_input, OUTPUT, WEIGHT, INPUT))
register_vmap("conv1d_ext::conv1d_backward_weight", folding_rule(_ops.conv1d_backward_weight, OUTPUT, INPUT, WEIGHT))
register_vmap("conv1d_ext::conv1d_backward_bias", bias_rule(_ops.conv1d_backward_bias))


# FLOPs as torch counts them: two for a product, padding and bias left out, complex products as three real ones.


def _flops(output: Tensor, weight_elements: int) -> int:
    batch, _, length = output.shape
    return 2 * batch * length * weight_elements * (3 if output.is_complex() else 1)


@register_flop_formula(_ops.conv1d, get_raw=True)
def _conv1d_flops(input: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return _flops(out_val, weight.numel())


@register_flop_formula(_ops.conv1d_backward_input, get_raw=True)
def _backward_input_flops(grad_output: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return _flops(grad_output, weight.numel())


@register_flop_formula(_ops.conv1d_backward_weight, get_raw=True)
def _backward_weight_flops(grad_output: Tensor, input: Tensor, kernel_size: int, *_: Any, **__: Any) -> int:
    # As if there was one group: torch's formula leaves the groups out here.
    return _flops(grad_output, grad_output.shape[1] * input.shape[1] * kernel_size)
