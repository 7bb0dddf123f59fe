"""Memory that runs out, sizes past 2^31 elements, integers at their extremes: right results or a clear error."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from cases import Case, make_operands

from conv1d_ext import _C

OPS = torch.ops.conv1d_ext

# The limit of 64 MiB above what the process has is for its address space, so that even untouched memory counts.
OUT_OF_MEMORY = """
import resource, sys, torch, conv1d_ext
torch.set_num_threads(2)
layer = conv1d_ext.Conv1d(256, 256, 3, padding=1)
x = torch.randn(2, 256, 2000, requires_grad=True)
expected = layer(x)
expected.sum().backward()  # whatever starts threads has started them
large = torch.randn(1).expand(1, 256, 1_000_000)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
refused = 0
for call in (
    lambda: layer(large),
    lambda: layer(large.requires_grad_()),
    lambda: torch.ops.conv1d_ext.conv1d_backward_input(large, layer.weight, 1_000_002),
    lambda: torch.ops.conv1d_ext.conv1d_backward_weight(large[:, :9, 9:], large[:, :9], 10),
    lambda: torch.ops.conv1d_ext.conv1d_backward_weight(large[..., :1], large, 1_000_000),
):
    try:
        call()
    except RuntimeError as error:
        assert "can't allocate memory" in str(error), error
        refused += 1
assert torch.equal(layer(x), expected)
print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_out_of_memory_is_torchs_error_and_harms_nothing() -> None:
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) == 4  # one of the weight gradients is small


EXTREMES = [-(2**63), -1, 0, 1, 2**48, 2**62, 2**63 - 1]  # 2^48: more memory than there is


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", ["stride", "padding_left", "padding_right", "dilation", "groups", "length"])
def test_integers_at_their_extremes_are_taken_or_refused(name: str, mode: str) -> None:
    """In pairs: a RuntimeError with a reason, or a result."""
    x, w, bias, grad = make_operands(Case(1, 2, 9, 2, 3))
    others = ["stride", "padding_left", "padding_right", "dilation", "groups"]
    messages: set[str] = set()
    for value, other, second in product(EXTREMES, others, EXTREMES):
        geometry = {"padding_mode": mode, other: second}
        length = value if name == "length" else 9
        if name != "length":
            geometry[name] = value
        for call in (
            lambda g=geometry: OPS.conv1d(x, w, bias, **g),
            lambda g=geometry, n=length: OPS.conv1d_backward_input(grad, w, n, **g),
            lambda g=geometry, n=length: OPS.conv1d_backward_weight(grad, x, n if name == "length" else 3, **g),
        ):
            try:
                result = call()
            except RuntimeError as error:
                messages.add(str(error))
            else:
                assert torch.isfinite(result).all()
    assert not [message for message in messages if "INTERNAL ASSERT" in message]


def test_a_plan_of_impossible_numbers_is_refused() -> None:
    sizes = {"batch": 1, "in_channels": 2, "in_length": 9, "out_channels": 2, "kernel_size": 3}
    for name in (*sizes, "stride", "dilation", "groups"):
        for value in (0, -1, -(2**63)):
            with pytest.raises(RuntimeError):
                _C.plan("conv1d", "float32", **{**sizes, name: value})


# bfloat16: 4 GiB. Operands are one element, expanded; results are looked at here and there.
BEYOND = 2**31 + 100
needs_memory = pytest.mark.skipif(
    not hasattr(os, "sysconf") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 << 30,
    reason="needs 6 GiB of free memory",
)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(1, dtype=torch.bfloat16).expand(shape)


def assert_all(result: torch.Tensor, value: float) -> None:
    """At 10,000 positions of each end and in between."""
    flat = result.reshape(-1)
    for part in (flat[:10_000], flat[-10_000:], flat[:: max(1, flat.numel() // 9973)]):
        assert torch.equal(part, torch.full_like(part, value))


@pytest.mark.long
@needs_memory
def test_lengths_beyond_2_to_the_31() -> None:
    x, w = ones(1, 1, BEYOND), ones(1, 1, 3)
    assert_all(OPS.conv1d(x, w), 3)
    assert_all(OPS.conv1d_backward_input(x, w, BEYOND + 2)[..., 2:-2], 3)
    assert_all(OPS.conv1d_backward_weight(x[..., :-2], x, 3), float(torch.tensor(BEYOND - 2.0).bfloat16()))
    assert_all(OPS.conv1d_backward_bias(x), float(torch.tensor(float(BEYOND)).bfloat16()))
    assert_all(OPS.conv1d(x, w, stride=2**20), 3)
    assert_all(OPS.conv1d(x, w, dilation=2**30), 3)


@pytest.mark.long
@needs_memory
def test_batches_beyond_2_to_the_31() -> None:
    batch = BEYOND // 1000
    assert_all(OPS.conv1d(ones(batch, 1, 1002), ones(1, 1, 3)), 3)
    assert_all(OPS.conv1d_backward_input(ones(batch, 1, 1000), ones(1, 1, 1), 1000), 1)


@pytest.mark.long
@needs_memory
def test_weights_beyond_2_to_the_31() -> None:
    out_channels, in_channels = 2**16, 2**15 + 1
    x, w, grad = ones(1, in_channels, 1), ones(out_channels, in_channels, 1), ones(1, out_channels, 1)
    assert_all(OPS.conv1d(x, w), 2**15)  # 2^15 + 1 rounded to bfloat16
    assert_all(OPS.conv1d_backward_input(grad, w, 1), 2**16)
    assert_all(OPS.conv1d_backward_weight(grad, x, 1), 1)
