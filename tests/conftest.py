"""What all tests share: seeded random numbers, and every instruction set that this machine has."""

from collections.abc import Iterator

import pytest
import torch

from conv1d_ext import _C


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=_C.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set."""
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For speed: problems as small as these gain nothing from threads, and results don't depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
