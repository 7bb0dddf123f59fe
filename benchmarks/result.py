"""What was measured of one layer, and what follows from it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .layers import Layer
from .peers import OURS

COPY = "copy"  # the engine that copies as many bytes as the layer must read and write


@dataclass(frozen=True)
class Result:
    """One layer on one device, in one dtype and mode, with one number of threads."""

    layer: Layer
    device: str
    dtype: str
    mode: str
    threads: int
    rounds: int
    seconds: dict[str, float]  # by engine, for one call: the median
    ratios: dict[str, float]  # by peer: how many times as long as conv1d_ext it takes
    memory_share: float  # the same of COPY
    errors: dict[str, float]  # as Workload.errors has them
    peak: float | None  # FLOP/s of FMAs on registers alone, with these threads; None on a GPU
    failures: dict[str, str]  # by peer: why it could not take part

    @property
    def flops(self) -> int:
        return self.layer.flops(self.mode)

    @property
    def bytes(self) -> int:
        return self.layer.bytes(self.mode, getattr(torch, self.dtype).itemsize)

    @property
    def speed(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds[OURS]

    @property
    def bandwidth(self) -> float:
        """Bytes/s, read and written, by COPY."""
        return self.bytes / self.seconds[COPY]

    @property
    def limit(self) -> tuple[float, str]:
        """The share reached of what the hardware can do, and what of it is the bottleneck: "memory" or "FMA"."""
        memory = self.memory_share, "memory"
        return memory if self.peak is None else max(memory, (self.speed / self.peak, "FMA"))

    def as_json(self) -> dict[str, Any]:
        share, limited_by = self.limit
        return asdict(self) | {
            "flops": self.flops,
            "bytes": self.bytes,
            "flops_per_second": self.speed,
            "copy_bytes_per_second": self.bandwidth,
            "limited_by": limited_by,
            "share_of_limit": share,
        }
