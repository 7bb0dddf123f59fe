"""patch_torch: whom it serves, and that torch is as before afterwards."""

import threading

import pytest
import torch
import torch.nn.functional as F
from operators import operators_of

import conv1d_ext
from conv1d_ext import patch_torch

INPUT, WEIGHT = torch.randn(2, 4, 20), torch.randn(6, 4, 3)
ORIGINALS = (torch.conv1d, F.conv1d, torch.nn.Conv1d._conv_forward)


@pytest.fixture(autouse=True)
def _torch_is_as_before():
    yield
    assert (torch.conv1d, F.conv1d, torch.nn.Conv1d._conv_forward) == ORIGINALS


def is_served(function, *args, **kwargs) -> bool:
    return "conv1d_ext::conv1d" in operators_of(function, *args, **kwargs)


def test_serves_functions_and_modules():
    class OwnForward(torch.nn.Conv1d):
        def forward(self, input):
            return F.conv1d(F.pad(input, (2, 0)), self.weight, self.bias)

    modules = [torch.nn.Conv1d(4, 6, 3, padding=2, padding_mode=mode) for mode in ("zeros", "reflect", "circular")]
    modules += [torch.nn.Conv1d(4, 6, 4, padding="same"), OwnForward(4, 6, 3), conv1d_ext.Conv1d(4, 6, 3)]
    expected = [module(INPUT) for module in modules]
    with patch_torch():
        assert is_served(torch.conv1d, INPUT, WEIGHT)
        assert is_served(F.conv1d, INPUT, WEIGHT, stride=2)
        assert is_served(torch.nn.Conv1d(4, 6, 3), INPUT)
        for module, output in zip(modules, expected, strict=True):
            assert is_served(module, INPUT)
            torch.testing.assert_close(module(INPUT), output)
    assert not is_served(F.conv1d, INPUT, WEIGHT)
    assert not is_served(modules[0], INPUT)


def test_classes_stay_what_they_are():
    cls, before = torch.nn.Conv1d, torch.nn.Conv1d(4, 6, 3)
    with patch_torch():
        assert torch.nn.Conv1d is cls
        assert isinstance(before, torch.nn.Conv1d)
        assert type(torch.nn.Conv1d(4, 6, 3)) is cls


def test_passes_what_torch_must_compute_to_torch():
    integers = torch.ones(1, 4, 8, dtype=torch.int64), torch.ones(4, 4, 3, dtype=torch.int64)
    expected = F.conv1d(*integers)
    with patch_torch():
        assert torch.equal(F.conv1d(*integers), expected)


def test_restores_after_an_exception():
    with pytest.raises(ZeroDivisionError), patch_torch():
        raise ZeroDivisionError


def test_nests():
    with patch_torch():
        with patch_torch():
            assert is_served(F.conv1d, INPUT, WEIGHT)
        assert is_served(F.conv1d, INPUT, WEIGHT)


def test_decorates():
    @patch_torch()
    def served() -> bool:
        return is_served(F.conv1d, INPUT, WEIGHT)

    assert served()
    assert served()


def test_contexts_of_two_threads_may_overlap():
    first_inside, first_may_leave = threading.Event(), threading.Event()

    def first():
        with patch_torch():
            first_inside.set()
            first_may_leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    first_inside.wait()
    with patch_torch():
        first_may_leave.set()
        thread.join()
        assert is_served(F.conv1d, INPUT, WEIGHT)


def test_compiles_inside_and_outside():
    def function(input, weight):
        return F.conv1d(input, weight, padding=1)

    torch._dynamo.reset()
    with patch_torch():
        inside = torch.compile(function, backend="eager", fullgraph=True)(INPUT, WEIGHT)
    outside = torch.compile(function, backend="eager", fullgraph=True)(INPUT, WEIGHT)
    torch.testing.assert_close(inside, outside)
