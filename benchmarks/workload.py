"""A layer with its operands and modules, ready to be run: what all engines compute, and how exactly they do."""

import copy
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

import conv1d_ext

from . import peers
from .layers import Layer
from .peers import OURS, Engine

MAX_ROTATION = 16  # with more, a small layer would wait for memory whose input lies in cache in a real model too


class Workload:
    """The operands are there several times: engines take them in turn, so that they have left the cache meanwhile."""

    def __init__(self, layer: Layer, device: str, dtype: torch.dtype, mode: str) -> None:
        torch.manual_seed(0)
        self.layer, self.device, self.dtype, self.mode = layer, device, dtype, mode
        self.stock = layer.module(device, dtype)
        self.ours = conv1d_ext.convert(copy.deepcopy(self.stock))
        self.inputs = rotation(torch.randn(layer.input_shape, device=device, dtype=dtype))
        self.cotangents: list[Tensor] = []
        if mode == "training":
            self.inputs = [input.requires_grad_() for input in self.inputs]
            self.cotangents = rotation(torch.randn(layer.output_shape, device=device, dtype=dtype))

    def our_engine(self) -> Engine:
        return self._engine(self.ours, self.inputs, self.cotangents)

    def peer_engine(self, peer: str, threads: int) -> Engine:
        """Raises what the peer raises where it cannot compute the layer."""
        if peer in peers.VARIANTS:
            return peers.variant(peer, self.our_engine())
        if self.mode == "forward":
            return peers.peer_forward(peer, self.stock, self.inputs, threads)
        return self._engine(self.stock, self.inputs, self.cotangents)

    @cached_property
    def errors(self) -> dict[str, float]:
        """The largest of torch, conv1d_ext and its variants, relative to the largest element, against torch in float64.

        So in float64 torch's is 0, and conv1d_ext's says how far the two are apart.
        """
        operands = self.inputs[:1], self.cotangents[:1]
        exactly = [[tensor.detach().to("cpu", torch.float64) for tensor in tensors] for tensors in operands]
        exactly[0][0].requires_grad_(self.mode == "training")
        expected = self._engine(copy.deepcopy(self.stock).to("cpu", torch.float64), *exactly)(0)
        ours = self._engine(self.ours, *operands)
        engines = {"torch": self._engine(self.stock, *operands), OURS: ours}
        engines |= {name: peers.variant(name, ours) for name in peers.VARIANTS}
        return {name: _error(engine(0), expected) for name, engine in engines.items()}

    def _engine(self, module: nn.Module, inputs: list[Tensor], cotangents: list[Tensor]) -> Engine:
        return peers.forward(module, inputs) if self.mode == "forward" else peers.training(module, inputs, cotangents)


def rotation(tensor: Tensor) -> list[Tensor]:
    """The tensor and as many copies as fill the last-level cache twice."""
    copies = -(-2 * _cache_bytes(tensor.device) // tensor.nbytes)
    return [tensor, *(tensor.clone() for _ in range(1, min(copies, MAX_ROTATION)))]


@cache
def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # such as "1024K"
    return max((int(size.read_text().strip("K\n")) * 1024 for size in sizes), default=32 << 20)


def _error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    pairs = ((a.detach().cpu().double(), e.detach()) for a, e in zip(actual, expected, strict=True))
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in pairs)
