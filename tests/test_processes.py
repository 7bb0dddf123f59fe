"""DataLoader workers, forked and spawned children compute and train, whatever threads the parent has used."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import conv1d_ext

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
THREADS = 4
SECONDS = 60  # after which whoever still waits is stuck
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def layer() -> Iterator[torch.nn.Module]:
    """A layer of this process, which has computed with it and with torch's operators, on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    layer = conv1d_ext.Conv1d(24, 32, 5, padding=2)
    step(layer, 0)
    yield layer
    torch.set_num_threads(before)


def sample(index: int) -> Tensor:
    return torch.randn(4, 24, 3000, generator=torch.Generator().manual_seed(index))


def step(layer: torch.nn.Module, index: int) -> list[Tensor]:
    """Forward and backward, of these operators and of torch's, all large enough for several threads."""
    output = layer(sample(index))
    loss = torch.nn.functional.gelu(output).square().sum()
    return [output.detach(), *torch.autograd.grad(loss, list(layer.parameters()))]


class Filtered(Dataset):
    """Features that the workers compute."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.layer(sample(index))


def use_threads(_: int) -> None:
    """DataLoader gives each worker one thread."""
    torch.set_num_threads(THREADS)


@needs_fork
@pytest.mark.parametrize("threads", ["one thread", "threads"])
def test_data_loader_workers_compute(layer: torch.nn.Module, threads: str) -> None:
    data = Filtered(layer)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        worker_init_fn=use_threads if threads == "threads" else None,
        timeout=SECONDS,
    )
    for epoch in range(2):
        for index, features in enumerate(loader):
            assert torch.equal(features, data[index]), epoch  # the parent computes between, too
    step(layer, 0)


def work(layer: torch.nn.Module, indices: Any, results: Any) -> None:
    torch.set_num_threads(THREADS)
    for index in iter(indices.get, None):
        results.put((index, [tensor.numpy() for tensor in step(layer, index)]))


@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_children_train_as_the_parent(layer: torch.nn.Module, method: str) -> None:
    context = mp.get_context(method)
    layer.share_memory()
    indices, results = context.SimpleQueue(), context.Queue()
    children = [context.Process(target=work, args=(layer, indices, results), daemon=True) for _ in range(2)]
    for child in children:
        child.start()
    step(layer, 0)
    for index in [*range(6), None, None]:
        indices.put(index)
    for _ in range(6):
        index, actual = results.get(timeout=SECONDS)
        for tensor, expected in zip(actual, step(layer, index), strict=True):
            assert torch.equal(torch.from_numpy(tensor), expected)
    for child in children:
        child.join(SECONDS)
        assert child.exitcode == 0
