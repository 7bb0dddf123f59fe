"""Conv1d and LazyConv1d: torch's modules with another `_conv_forward`, so the state, the signature and all else agree.

What differs between the classes are methods, so an instance changes sides by its `__class__` alone (convert.py).
"""

import torch
from torch import Tensor

from .functional import conv1d, conv1d_padded

__all__ = ["Conv1d", "LazyConv1d"]


class Conv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d with this package's kernels; see there for the parameters, attributes and initialisation.

    Args:
        in_channels, out_channels, groups, bias, device, dtype: as in torch.nn.Conv1d.
        kernel_size, stride, dilation: an int or ``(int,)``.
        padding: an int or ``(int,)`` for both sides, ``'valid'`` or ``'same'``.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``; no mode costs a padded copy.

    Shape:
        Input ``[N, C_in, L_in]`` or ``[C_in, L_in]``, output ``[N, C_out, L_out]`` or ``[C_out, L_out]``, where
        ``L_out = (L_in + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``. Input and parameters are of
        one dtype; see conv1d_ext.functional.conv1d for those that these kernels compute.

    Raises:
        ValueError: an argument of the constructor is out of range.
        RuntimeError: the input's shape, dtype or device does not fit.
        TypeError: the input is no tensor.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._conv_forward(input, self.weight, self.bias)
        # As in torch.nn.Conv1d, but where Module.__getattr__ would find the parameters after a search that takes longer
        # than a small layer. They are not there when weight_norm, pruning and the like have put an attribute in place.
        parameters = self._parameters
        weight = parameters["weight"] if "weight" in parameters else self.weight  # noqa: SIM401
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return self._conv_forward(input, weight, bias)  # type: ignore[arg-type]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros" and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return conv1d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        # The padding modes; and TorchScript, for which conv1d takes too many forms of arguments.
        left, right = self._reversed_padding_repeated_twice[0], self._reversed_padding_repeated_twice[1]
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            left, right = self.padding[0], self.padding[0]
        stride, dilation = self.stride[0], self.dilation[0]
        return conv1d_padded(input, weight, bias, stride, (left, right), dilation, self.groups, self.padding_mode)


class LazyConv1d(torch.nn.LazyConv1d):
    """torch.nn.LazyConv1d, which takes `in_channels` from its first input and then becomes a Conv1d of this package."""

    cls_to_become = Conv1d
