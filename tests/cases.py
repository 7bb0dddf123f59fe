"""The shapes that every test of the kernels runs, and the tensors for them.

Small, but each tells something: channel counts and lengths that fill no vector, one output position, kernels longer
than the input, strides beyond the kernel, and so on. Add a case here and forward, gradients, transforms, every
data type and every instruction set test it.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Case:
    batch: int
    in_channels: int
    in_length: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)  # left, right
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True

    @property
    def geometry(self) -> dict:
        """The operators' keyword arguments."""
        return {
            "stride": self.stride,
            "padding_left": self.padding[0],
            "padding_right": self.padding[1],
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    @property
    def out_length(self) -> int:
        padded = self.padding[0] + self.in_length + self.padding[1]
        return (padded - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.batch, self.in_channels, self.in_length

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        return self.out_channels, self.in_channels // self.groups, self.kernel_size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.batch, self.out_channels, self.out_length

    def terms(self, op: str) -> int:
        """The longest sum that the operator computes, for reference.tolerance."""
        overlap = {"zeros": 1, "reflect": 3, "circular": 3, "replicate": 1 + max(self.padding)}[self.padding_mode]
        return {
            "conv1d": self.in_channels // self.groups * self.kernel_size + self.bias,
            "conv1d_backward_input": self.out_channels // self.groups * self.kernel_size * overlap,
            "conv1d_backward_weight": self.batch * self.out_length,
            "conv1d_backward_bias": self.batch * self.out_length,
        }[op]

    def __str__(self) -> str:
        """The test's id: what differs from the defaults."""
        text = f"{self.batch}x{self.in_channels}x{self.in_length}-o{self.out_channels}-k{self.kernel_size}"
        text += f"-s{self.stride}" * (self.stride != 1) + f"-d{self.dilation}" * (self.dilation != 1)
        text += f"-g{self.groups}" * (self.groups != 1) + "-nobias" * (not self.bias)
        if self.padding != (0, 0):
            text += f"-p{self.padding[0]},{self.padding[1]}" + f"-{self.padding_mode}" * (self.padding_mode != "zeros")
        return text


class Operands(NamedTuple):
    input: torch.Tensor  # [N, C_in, L_in]
    weight: torch.Tensor  # [C_out, C_in / groups, K]
    bias: torch.Tensor | None  # [C_out]
    grad_output: torch.Tensor  # [N, C_out, L_out]


def make_operands(case: Case, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Operands:
    """Standard normal tensors, the same ones each time; `requires_grad` concerns input, weight and bias."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    exact = torch.complex128 if dtype.is_complex else torch.float64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=exact).to(dtype)

    operands = Operands(
        normal(*case.input_shape),
        normal(*case.weight_shape),
        normal(case.out_channels) if case.bias else None,
        normal(*case.output_shape),
    )
    for operand in operands[:3]:
        if operand is not None:
            operand.requires_grad_(requires_grad)
    return operands


CASES = [
    # The plainest, then one channel or position of everything.
    Case(2, 3, 20, 4, 3),
    Case(1, 1, 1, 1, 1),
    Case(1, 1, 9, 1, 3, bias=False),
    Case(3, 1, 40, 8, 7, padding=(3, 3)),
    Case(2, 8, 33, 1, 5, padding=(2, 2)),
    # Channel counts and lengths around the widths of vectors and register tiles.
    Case(1, 7, 31, 17, 3, padding=(1, 1)),
    Case(2, 8, 32, 16, 3, padding=(1, 1)),
    Case(2, 16, 17, 8, 4, padding=(1, 2)),
    Case(1, 17, 47, 33, 5),
    Case(2, 33, 49, 7, 2),
    Case(1, 16, 64, 24, 3, padding=(1, 1), bias=False),
    Case(2, 130, 5, 129, 3, padding=(1, 1)),
    Case(33, 5, 7, 6, 3, padding=(1, 1)),
    Case(33, 3, 3, 17, 3),
    # Pointwise: a matrix product.
    Case(2, 17, 33, 7, 1),
    Case(1, 8, 16, 16, 1, bias=False),
    Case(2, 7, 19, 5, 1, stride=3),
    Case(2, 6, 10, 9, 1, padding=(2, 1), groups=3),
    # ... of few rows: several blocks of positions, parts of the channels.
    Case(1, 70, 2100, 3, 1),
    Case(1, 3, 2100, 70, 1, bias=False),
    # Several items side by side, each of which fills a tile, and fewer at last.
    Case(5, 40, 50, 50, 3, padding=(2, 2), dilation=2, padding_mode="circular"),
    Case(5, 64, 99, 60, 4, stride=2, padding=(1, 2), groups=2),
    Case(3, 40, 100, 40, 5, padding=(2, 2), padding_mode="reflect"),
    # Columns of few positions (columns_inl.h): 64 output channels and more, several of a batch together.
    Case(25, 70, 8, 66, 3, padding=(1, 1)),
    Case(3, 33, 40, 65, 4, stride=3, padding=(4, 2), dilation=2),
    Case(5, 70, 50, 66, 1),
    Case(2, 10, 9, 140, 2, padding=(0, 3), groups=2),
    # Input gradients of few input channels by taps (backward_input_taps_inl.h): several blocks, parts of the sum, tiles
    # of rows; strides with gaps.
    Case(2, 1, 2600, 17, 5, padding=(2, 2)),
    Case(2, 2, 90, 70, 4, padding=(7, 1), dilation=3),
    Case(1, 1, 1501, 9, 13, stride=2, padding=(9, 2)),
    Case(2, 4, 64, 36, 3, padding=(1, 1), groups=4),
    Case(2, 1, 100, 9, 2, stride=3),
    # ... and long taps over large strides by columns, in several blocks.
    Case(2, 1, 900, 9, 80, stride=16, padding=(40, 40)),
    Case(1, 2, 4000, 3, 40, stride=24, padding=(0, 7)),
    Case(1, 1, 700, 2, 40, stride=9, padding=(90, 3)),
    # One output position; kernels longer than the input.
    Case(2, 3, 5, 7, 5),
    Case(3, 16, 5, 7, 5),
    Case(9, 1400, 4, 3, 3),
    Case(1, 16, 129, 8, 129),
    Case(2, 3, 2, 4, 5, padding=(2, 2)),
    Case(1, 2, 1, 3, 3, padding=(1, 1)),
    Case(2, 3, 4, 2, 9, padding=(4, 3)),
    # Strides, up to beyond the kernel.
    Case(2, 3, 20, 4, 3, stride=2, padding=(1, 1)),
    Case(1, 7, 50, 8, 5, stride=3, padding=(2, 2)),
    Case(2, 4, 61, 17, 4, stride=5),
    Case(2, 3, 40, 5, 2, stride=7, padding=(1, 0)),
    Case(1, 1, 100, 16, 10, stride=5, bias=False),
    Case(2, 8, 33, 9, 8, stride=4, padding=(2, 2)),
    # Dilation; also as a multiple of the stride, and with a common divisor, when some phases meet no tap.
    Case(2, 3, 30, 4, 3, padding=(2, 2), dilation=2),
    Case(1, 8, 70, 7, 5, padding=(12, 0), dilation=3),
    Case(1, 15, 90, 15, 11, padding=(8, 8), dilation=8),
    Case(2, 3, 40, 5, 3, stride=2, padding=(2, 2), dilation=2),
    Case(2, 3, 41, 5, 3, stride=2, padding=(3, 3), dilation=3),
    Case(1, 5, 45, 4, 4, stride=3, padding=(3, 2), dilation=2),
    Case(2, 4, 60, 3, 5, stride=2, padding=(4, 4), dilation=4),
    Case(1, 3, 67, 8, 4, stride=6, padding=(5, 1), dilation=4),
    Case(1, 4, 66, 3, 3, stride=5, dilation=3),
    # Depthwise, with and without a channel multiplier; other groups.
    Case(2, 8, 50, 8, 4, padding=(3, 0), groups=8),
    Case(1, 17, 40, 17, 31, padding=(15, 15), groups=17, bias=False),
    Case(2, 7, 33, 21, 3, stride=2, padding=(1, 1), groups=7),
    Case(1, 16, 70, 32, 5, padding=(4, 4), dilation=2, groups=16),
    Case(33, 3, 9, 3, 3, groups=3),
    Case(1, 3, 10, 3, 3, padding=(200_000, 200_000), dilation=200_000, groups=3),
    Case(2, 6, 29, 10, 3, padding=(1, 1), groups=2),
    Case(1, 9, 31, 21, 4, stride=2, groups=3),
    Case(2, 12, 26, 20, 5, stride=3, padding=(2, 2), dilation=2, groups=4),
    # Padding: uneven (an even kernel with padding='same'), wider than the kernel, one side.
    Case(2, 4, 16, 5, 4, padding=(1, 2)),
    Case(1, 5, 18, 3, 6, padding=(7, 8), dilation=3),
    Case(2, 3, 10, 4, 3, padding=(5, 9)),
    Case(2, 3, 12, 4, 2, stride=2, padding=(0, 6)),
    # Padding modes; for replicate and circular as wide as the input, for replicate wider.
    Case(2, 3, 20, 4, 5, padding=(2, 2), padding_mode="reflect"),
    Case(1, 4, 6, 5, 4, stride=2, padding=(5, 3), dilation=2, padding_mode="reflect"),
    Case(2, 8, 17, 8, 3, padding=(1, 2), groups=8, padding_mode="reflect"),
    Case(2, 3, 20, 4, 5, padding=(2, 2), padding_mode="replicate"),
    Case(1, 5, 4, 7, 6, stride=3, padding=(4, 9), padding_mode="replicate"),
    Case(2, 6, 21, 6, 4, padding=(3, 0), dilation=2, groups=3, padding_mode="replicate", bias=False),
    Case(2, 3, 20, 4, 5, padding=(2, 2), padding_mode="circular"),
    Case(1, 4, 5, 3, 4, stride=2, padding=(5, 5), dilation=3, padding_mode="circular"),
    Case(2, 8, 19, 16, 7, padding=(3, 4), groups=8, padding_mode="circular"),
    Case(1, 2, 1, 3, 3, padding=(1, 1), padding_mode="circular"),
    # Empty batches.
    Case(0, 3, 20, 4, 3, padding=(1, 1)),
    Case(0, 4, 9, 4, 3, padding=(2, 2), groups=4, padding_mode="reflect"),
    Case(0, 17, 5, 8, 5),
    # Long enough to cross the borders of tiles and blocks.
    Case(1, 3, 1000, 9, 7, padding=(3, 3)),
    Case(1, 4, 1003, 4, 129, padding=(64, 64), groups=4),
    Case(2, 2, 997, 3, 16, stride=8, padding=(4, 4), padding_mode="circular"),
    Case(1, 33, 515, 34, 3, padding=(2, 2), dilation=2),
    Case(1, 60, 400, 20, 3, padding=(1, 1)),
    Case(1, 3, 1500, 5, 24, stride=12),
    Case(5, 1, 260, 30, 40, stride=20, padding=(20, 15)),
    Case(6, 2, 96, 5, 8, stride=11),
    Case(3, 1, 260, 9, 33, stride=11, padding=(16, 16), padding_mode="reflect"),
    # ... of which the last ones, of no tap, lie beyond the widest padding.
    Case(2, 1, 40, 5, 34, stride=11, padding=(39, 39), padding_mode="reflect"),
    Case(2, 1, 40, 5, 34, stride=11, padding=(40, 40), padding_mode="circular"),
    # Weight gradients added up in parts: of outer products (in small blocks), of dot products, of depthwise rows.
    Case(17, 3, 30, 8, 3),
    Case(2, 2, 1100, 1, 3, padding=(1, 1)),
    Case(2, 3, 1100, 3, 3, padding=(1, 1), groups=3),
    # Depthwise rows in several blocks, read in place and by phase of the stride; taps in parts; strides with gaps.
    Case(2, 3, 5000, 3, 5, padding=(8, 8), dilation=4, groups=3, padding_mode="circular"),
    Case(2, 3, 2500, 3, 5, stride=2, padding=(2, 2), groups=3),
    Case(1, 2, 700, 2, 300, padding=(150, 149), groups=2),
    Case(2, 3, 130, 3, 7, stride=3, padding=(6, 3), dilation=2, groups=3, padding_mode="reflect"),
    Case(1, 3, 61, 3, 4, stride=4, padding=(1, 3), dilation=2, groups=3),
    Case(2, 3, 203, 3, 9, stride=4, padding=(4, 4), groups=3, bias=False),
    Case(2, 3, 90, 3, 2, stride=9, groups=3),
    Case(2, 3, 350, 12, 3, padding=(1, 1), groups=3),
    # Several panels, for which all weights are packed at once.
    Case(1, 5, 1900, 17, 3, padding=(1, 1)),
    Case(1, 9, 2600, 4, 5, stride=2),
]
