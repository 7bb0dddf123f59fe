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
