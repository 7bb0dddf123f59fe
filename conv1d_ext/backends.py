"""Switches of the kernels, in the manner of torch.backends. They hold for the whole process, all threads included.

conv1d_ext.backends.cpu.allow_fft    whether long kernels may go through the Fourier transform
conv1d_ext.backends.cpu.flags(...)   a context manager that sets switches and puts them back
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

    @contextmanager
    def flags(self, *, allow_fft: bool) -> Iterator[None]:
        """Sets the switches while it is open."""
        before = _C.fft_use()
        self.allow_fft = allow_fft
        try:
            yield
        finally:
            _C.set_fft_use(before)


cpu = _Cpu()
