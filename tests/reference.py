"""What the operators should return: a naive float64 (complex128) oracle, and torch itself.

The oracle has the operators' names and arguments and shares nothing with the kernels: padding is an index map from
padded to input positions, and each tap is one einsum over a strided slice. Real and complex operands alike are
multiplied as they are, nothing is conjugated.
"""

from collections.abc import Iterator

import numpy as np
import torch
from cases import Case
from torch import Tensor


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding_left: int = 0,
    padding_right: int = 0, dilation: int = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    x, w = _exact(input), _by_group(_exact(weight), groups)
    positions = _padded_positions(x.shape[2], padding_left, padding_right, padding_mode)
    padded = _by_group(_with_zero_at_the_end(x)[:, :, positions], groups, axis=1)
    out_length = (len(positions) - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    output = np.zeros((x.shape[0], groups, w.shape[1], out_length), x.dtype)
    for k, tap in _taps(weight.shape[2], out_length, stride, dilation):
        output += np.einsum("ngct,goc->ngot", padded[..., tap], w[..., k])
    output = output.reshape(x.shape[0], weight.shape[0], out_length)
    return torch.from_numpy(output if bias is None else output + _exact(bias)[:, None])


def conv1d_backward_input(
    grad_output: Tensor, weight: Tensor, in_length: int, *, stride: int = 1, padding_left: int = 0,
    padding_right: int = 0, dilation: int = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    g, w = _by_group(_exact(grad_output), groups, axis=1), _by_group(_exact(weight), groups)
    positions = _padded_positions(in_length, padding_left, padding_right, padding_mode)
    batch, in_channels = g.shape[0], groups * weight.shape[1]
    grad_padded = np.zeros((batch, groups, weight.shape[1], len(positions)), g.dtype)
    for k, tap in _taps(weight.shape[2], g.shape[3], stride, dilation):
        grad_padded[..., tap] += np.einsum("ngot,goc->ngct", g, w[..., k])
    grad_input = np.zeros((in_length + 1, batch, in_channels), g.dtype)
    np.add.at(grad_input, positions, grad_padded.reshape(batch, in_channels, len(positions)).transpose(2, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(grad_input[:-1].transpose(1, 2, 0)))


def conv1d_backward_weight(
    grad_output: Tensor, input: Tensor, kernel_size: int, *, stride: int = 1, padding_left: int = 0,
    padding_right: int = 0, dilation: int = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    g, x = _by_group(_exact(grad_output), groups, axis=1), _exact(input)
    positions = _padded_positions(x.shape[2], padding_left, padding_right, padding_mode)
    padded = _by_group(_with_zero_at_the_end(x)[:, :, positions], groups, axis=1)
    grad_weight = np.zeros((groups, g.shape[2], padded.shape[2], kernel_size), g.dtype)
    for k, tap in _taps(kernel_size, g.shape[3], stride, dilation):
        grad_weight[..., k] = np.einsum("ngot,ngct->goc", g, padded[..., tap])
    return torch.from_numpy(grad_weight.reshape(-1, *grad_weight.shape[2:]))


def conv1d_backward_bias(grad_output: Tensor) -> Tensor:
    return torch.from_numpy(_exact(grad_output).sum((0, 2)))


def torch_conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding_left: int = 0,
    padding_right: int = 0, dilation: int = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """The same by torch's own operators, on input of any dtype, differentiable."""
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = torch.nn.functional.pad(input, (padding_left, padding_right), mode=mode)
    return torch.nn.functional.conv1d(padded, weight, bias, stride, 0, dilation, groups)


def tolerance(dtype: torch.dtype, terms: int) -> dict[str, float]:
    """How far a sum of `terms` products of standard normal numbers may lie from the exact one.

    Rounding the result to `dtype` costs half a unit: rtol. The sum itself is kept in the accumulation type, float for
    the 16-bit types. Its partial sums grow like sqrt(j), each addition adds an error of at most eps / 2 of that, and
    the errors are as good as independent: together sqrt(sum of j) * eps / 2 / sqrt(3) = 0.2 * eps * terms, in any order
    of summation. The 4 below is five standard deviations and as much again for products without FMA and for the few
    big operands that make short sums uneven, which the `4 +` serves as well. A complex product is two real ones.
    """
    accumulation = torch.float32 if dtype.itemsize == 2 else dtype
    terms *= 2 if dtype.is_complex else 1
    return {"rtol": torch.finfo(dtype).eps, "atol": 4 * torch.finfo(accumulation).eps * (4 + terms)}


def assert_matches(actual: Tensor, expected: Tensor, terms: int) -> None:
    """Compares a result of any dtype with the oracle's, by the tolerance for its dtype."""
    torch.testing.assert_close(actual.to(expected.dtype), expected, **tolerance(actual.dtype, terms))


def assert_op_matches(op: str, case: Case, actual: Tensor, expected: Tensor, exact: bool = False) -> None:
    """Compares an operator's result; `exact` where neither products nor sums round, but the result alone."""
    if op == "conv1d_backward_input" and case.padding_mode != "zeros" and actual.dtype.itemsize == 2:
        # The gradient of a repeated position is rounded to 16 bits, then the padding's are added, as torch does.
        largest = expected.abs().max().item() if expected.numel() else 0.0
        eps = torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=eps, atol=2 * eps * largest)
    elif exact:
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=0)
    else:
        assert_matches(actual, expected, case.terms(op))


def _exact(tensor: Tensor) -> np.ndarray:
    return tensor.detach().resolve_conj().to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


def _by_group(array: np.ndarray, groups: int, axis: int = 0) -> np.ndarray:
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


def _taps(kernel_size: int, out_length: int, stride: int, dilation: int) -> Iterator[tuple[int, slice]]:
    """For each tap k the padded positions that it meets at t = 0 ... out_length - 1."""
    for k in range(kernel_size):
        yield k, slice(k * dilation, k * dilation + (out_length - 1) * stride + 1, stride)


def _with_zero_at_the_end(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.zeros_like(x[:, :, :1])], axis=2)


def _padded_positions(in_length: int, left: int, right: int, mode: str) -> np.ndarray:
    """The input position that each padded position shows; -1, the zero at the end, where it shows none."""
    position = np.arange(-left, in_length + right)
    last = in_length - 1
    return {
        "zeros": np.where((position >= 0) & (position <= last), position, -1),
        "reflect": last - abs(last - abs(position)),
        "replicate": position.clip(0, last),
        "circular": position % in_length,
    }[mode]
