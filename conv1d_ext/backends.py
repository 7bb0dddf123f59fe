"""Switches of the kernels, in the manner of torch.backends. They hold for the whole process, all threads included.

conv1d_ext.backends.cpu.allow_fft                whether long kernels may go through the Fourier transform
conv1d_ext.backends.cpu.allow_toom_cook          whether layers may go through Toom-Cook's algorithm
conv1d_ext.backends.cpu.allow_reduced_precision  whether float32 may be less precise there, and faster
conv1d_ext.backends.cpu.allow_amx                whether float32 and bfloat16 may go through the CPU's matrix unit
conv1d_ext.backends.cpu.flags(...)               a context manager that sets switches and puts them back
conv1d_ext.backends.cuda.enabled                 whether CUDA tensors go to the CUDA kernels, or to torch's own operator
conv1d_ext.backends.cuda.flags(...)              the same as for the CPU
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import _C

__all__ = ["cpu", "cuda"]


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
        """Whether layers that are faster through Toom-Cook's (Winograd's) algorithm go through it. True unless set.

        In float32 and float64, for layers of stride 1 and kernels of 2 to 128 taps, and of other strides and kernels up
        to four times as long (but for weight gradients); `explain` says for which layer. Its error is that of direct
        sums, in the norm, for up to three taps, and 1.1 to 1.3 times as much for more, or for kernels that are no
        multiple of the stride. In the last bits an output depends on the inputs of all its taps, those that are zero
        among them, and for more than three taps on up to three inputs before them, for strides on those before them
        that would make the kernel a multiple.
        """
        return _C.toom_cook_use() != "never"

    @allow_toom_cook.setter
    def allow_toom_cook(self, allowed: bool) -> None:
        _C.set_toom_cook_use("where faster" if allowed else "never")

    @property
    def allow_reduced_precision(self) -> bool:
        """Whether Toom-Cook's algorithm may compute float32 outputs less precisely. False unless it is set.

        By the fewest multiplications, with errors of 1.5 to 5 times those of direct sums (some 1e-6 of the norm),
        hundreds of times below TF32's. Torch's own switch allows it as well, while
        ``torch.backends.mkldnn.conv.fp32_precision`` is ``"tf32"`` or ``"bf16"``. Without `allow_toom_cook` neither
        does.
        """
        return _C.reduced_precision()

    @allow_reduced_precision.setter
    def allow_reduced_precision(self, allowed: bool) -> None:
        _C.set_reduced_precision(allowed)

    @property
    def allow_amx(self) -> bool:
        """Whether layers that are faster by the CPU's matrix unit (AMX) go through it. True unless it is set.

        float32 is taken apart into three bfloat16, so that nothing is lost: its error is that of direct sums, or less.
        """
        return _C.amx_use() != "never"

    @allow_amx.setter
    def allow_amx(self, allowed: bool) -> None:
        _C.set_amx_use("where faster" if allowed else "never")

    @contextmanager
    def flags(
        self,
        *,
        allow_fft: bool | None = None,
        allow_toom_cook: bool | None = None,
        allow_reduced_precision: bool | None = None,
        allow_amx: bool | None = None,
    ) -> Iterator[None]:
        """Sets the switches that are given while it is open."""
        before = _C.fft_use(), _C.toom_cook_use(), _C.amx_use(), _C.reduced_precision()
        if allow_amx is not None:
            self.allow_amx = allow_amx
        if allow_fft is not None:
            self.allow_fft = allow_fft
        if allow_toom_cook is not None:
            self.allow_toom_cook = allow_toom_cook
        if allow_reduced_precision is not None:
            self.allow_reduced_precision = allow_reduced_precision
        try:
            yield
        finally:
            _C.set_fft_use(before[0])
            _C.set_toom_cook_use(before[1])
            _C.set_amx_use(before[2])
            _C.set_reduced_precision(before[3])


class _Cuda:
    @property
    def enabled(self) -> bool:
        """Whether CUDA tensors are computed by this package's CUDA kernels. True unless it is set.

        If not, and where the kernels were not built (`show_config` says so), torch's own operator computes them.
        """
        return _C.cuda_enabled()

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        _C.set_cuda_enabled(enabled)

    @contextmanager
    def flags(self, *, enabled: bool | None = None) -> Iterator[None]:
        """Sets the switch while it is open, if it is given."""
        before = self.enabled
        if enabled is not None:
            self.enabled = enabled
        try:
            yield
        finally:
            self.enabled = before


def cuda_arithmetic(dtype: torch.dtype, device: torch.device | int) -> str | None:
    """What the CUDA kernels compute operands of a dtype in on a GPU, at this time; None where torch's operator does."""
    gpu = torch.cuda.get_device_properties(device)
    return _C.cuda_arithmetic(dtype, 10 * gpu.major + gpu.minor, gpu.shared_memory_per_block_optin)  # type: ignore[attr-defined]


cpu = _Cpu()
cuda = _Cuda()
