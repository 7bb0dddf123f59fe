"""float32 throughout, ours and torch's, where a test does not ask for TF32."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _ieee() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def tf32(_ieee: None) -> None:
    """TF32 for convolutions, as is torch's default."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    torch.backends.cudnn.conv.fp32_precision = "tf32"
