"""Layers of real models, as layers.json lists them: what a benchmark runs, and the work that there is in it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

PUBLIC_LAYERS = Path(__file__).with_name("layers.json")

_NAMES = {"id": "name", "N": "batch", "C_in": "in_channels", "L_in": "in_length", "C_out": "out_channels",
          "K": "kernel_size"}  # fmt: skip

# Convolutions of the same cost: a training step computes the output and the gradients of input and weight.
PASSES = {"forward": 1, "training": 3}


@dataclass(frozen=True)
class Layer:
    """A Conv1d and the size of its input."""

    name: str
    model: str
    batch: int
    in_channels: int
    in_length: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int | str = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"

    def module(self, device: str, dtype: torch.dtype) -> torch.nn.Conv1d:
        return torch.nn.Conv1d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias, self.padding_mode, device, dtype,
        )  # fmt: skip

    @property
    def input_shape(self) -> torch.Size:
        return torch.Size((self.batch, self.in_channels, self.in_length))

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_channels, self.in_channels // self.groups, self.kernel_size))

    @cached_property
    def output_shape(self) -> torch.Size:
        return self.module("meta", torch.float32)(torch.empty(self.input_shape, device="meta")).shape

    def flops(self, mode: str) -> int:
        """As torch counts them: two for a product, those with padding included, the bias left out."""
        batch, _, out_length = self.output_shape
        return PASSES[mode] * 2 * batch * out_length * self.weight_shape.numel()

    def bytes(self, mode: str, itemsize: int) -> int:
        """The least that can be read and written: each pass touches (the gradients of) all three tensors once."""
        elements = self.input_shape.numel() + self.weight_shape.numel() + self.output_shape.numel()
        return PASSES[mode] * elements * itemsize


def load(path: Path) -> list[Layer]:
    """Raises OSError, ValueError or TypeError where `path` is no list of layers, or one can't be computed."""
    entries = json.loads(path.read_text())
    layers = [Layer(**{_NAMES.get(key, key): value for key, value in entry.items()}) for entry in entries]
    for layer in layers:
        try:
            _ = layer.output_shape
        except RuntimeError as error:
            raise ValueError(f"{layer.name}: {error}") from error
    return layers
