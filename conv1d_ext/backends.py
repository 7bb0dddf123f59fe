"""Switches of the kernels, in the manner of torch.backends. They hold for the whole process, all threads included.

conv1d_ext.backends.cpu.allow_fft        whether long kernels may go through the Fourier transform
conv1d_ext.backends.cpu.allow_toom_cook  whether float32 may go through Toom-Cook's algorithm, at a lower precision
conv1d_ext.backends.cpu.flags(...)       a context manager that sets switches and puts them back
"""

from collections.abc import Iterator
from contextlib import contextmanager

from . import _C

__all__ = ["cpu"]


class _Cpu:
    @property
    def allow_fft(self) -> bool:
        """Whether layers that are faster through the Fourier transform go through it. True unless it is set.

        In float32 and float64, for kernels of 6 taps and more; `explain` says for which layer. Its error is
        relative to the norm of a block of some hundred or thousand positions rather than to each output: it is below
        that of a long sum, but a quiet passage beside a loud one has the loud one's.
        """
        return _C.fft_use() != "never"

    @allow_fft.setter
    def allow_fft(self, allowed: bool) -> None:
        _C.set_fft_use("where faster" if allowed else "never")

    @property
    def allow_toom_cook(self) -> bool:
        """Whether layers that are faster through Toom-Cook's (Winograd's) algorithm go through it. False unless set.

        In float32, for layers of stride 1 and kernels of 2 to 128 taps; `explain` says for which layer. Its error is
        1.5 to 5 times that of the direct sums (some 1e-6 of the norm), hundreds of times below TF32's. It is also
        allowed while ``torch.backends.mkldnn.conv.fp32_precision`` is ``"tf32"`` or ``"bf16"``, whatever is set here.
        """
        return _C.toom_cook_use() != "never"

    @allow_toom_cook.setter
    def allow_toom_cook(self, allowed: bool) -> None:
        _C.set_toom_cook_use("where faster" if allowed else "never")

    @contextmanager
    def flags(self, *, allow_fft: bool | None = None, allow_toom_cook: bool | None = None) -> Iterator[None]:
        """Sets the switches that are given while it is open."""
        before = _C.fft_use(), _C.toom_cook_use()
        if allow_fft is not None:
            self.allow_fft = allow_fft
        if allow_toom_cook is not None:
            self.allow_toom_cook = allow_toom_cook
        try:
            yield
        finally:
            _C.set_fft_use(before[0])
            _C.set_toom_cook_use(before[1])


cpu = _Cpu()
