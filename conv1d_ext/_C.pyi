from collections.abc import Sequence
from typing import Any

from torch import Tensor

def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor: ...
def conv1d_padded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor: ...
def build_info() -> dict[str, Any]: ...
def isa() -> str: ...
def supported_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def cache_sizes() -> tuple[int, int]: ...
def set_cache_sizes(l1: int, l2: int) -> None: ...
def fft_use() -> str: ...
def set_fft_use(name: str) -> None: ...
def toom_cook_use() -> str: ...
def set_toom_cook_use(name: str) -> None: ...
def fma_peak() -> float: ...
def plan(
    op: str,
    dtype: str,
    *,
    batch: int,
    in_channels: int,
    in_length: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding_left: int = 0,
    padding_right: int = 0,
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    accumulate: bool = False,
) -> dict[str, Any]: ...
