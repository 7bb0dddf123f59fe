"""Memory: what a call takes beyond its operands and results is small, and nothing stays."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conv1d_ext

# In a process of its own, where no other test has left memory that could be used again. Prints the bytes by which the
# peak of a pass exceeds what was there before and what the pass returned.
PEAK = """
import sys, torch, conv1d_ext
from pathlib import Path

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

def peak_above(run):
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    returned = run()
    return status("VmHWM") - before - sum(tensor.nbytes for tensor in returned)

torch.set_num_threads(int(sys.argv[1]))
conv1d_ext.backends.cpu.allow_fft = False
conv1d_ext.backends.cpu.allow_toom_cook = sys.argv[2] == "True"
for mode in ("zeros", "reflect", "replicate", "circular"):
    for channels, kernel_size, groups, length in ((16, 9, 1, 1_000_000), (512, 3, 1, 20_000), (256, 4, 256, 60_000)):
        layer = conv1d_ext.Conv1d(channels, channels, kernel_size, padding=3, padding_mode=mode, groups=groups)
        x = torch.randn(1, channels, length, requires_grad=True)
        few = layer(x[..., :100])
        torch.autograd.grad(few, layer.weight, torch.ones_like(few))  # imports and starts what the first call does
        with torch.no_grad():
            print(peak_above(lambda: [layer(x)]))
        y = layer(x)
        grad = torch.ones_like(y)
        print(peak_above(lambda: torch.autograd.grad(y, (x, layer.weight), grad)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("toom_cook", [False, True], ids=["direct", "toom-cook"])
def test_at_most_4_mib_per_thread_are_taken(threads: int, toom_cook: bool) -> None:
    command = [sys.executable, "-c", PEAK, str(threads), str(toom_cook)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # A MiB for Python, and for what malloc keeps of earlier tensors.
    assert [peak for peak in map(int, printed.split()) if peak > (4 * threads + 1) << 20] == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_does_not_grow_over_ten_thousand_calls() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    layer = conv1d_ext.Conv1d(4, 6, 3, padding=1)

    def call(length: int) -> None:
        layer(torch.randn(1, 4, length, requires_grad=True)).sum().backward()

    for length in range(1, 1000):
        call(length)
    before = resident_pages()
    for i in range(10_000):
        call(1 + i % 999)
    assert resident_pages() - before < 512  # 2 MiB: a leak of 200 bytes a call


def test_keeps_input_and_weight_for_backward_and_nothing_else() -> None:
    """torch keeps a padded copy of the input, too, where there is a padding mode."""
    layer = conv1d_ext.Conv1d(4, 6, 3, padding=2, padding_mode="reflect")
    x = torch.randn(2, 4, 30, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), layer.weight.data_ptr()}
