"""Data-parallel training by two processes on the loopback interface, whichever comes first, convert or the wrapper.

Two processes run all there is, with torch's layers and with these, once; the tests look at what they bring back.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import conv1d_ext

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

RANKS = 2
ORDERS = ["torch", "convert, wrap", "wrap, convert"]


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(3, 8, 5, stride=2, padding=2, dtype=dtype)
        self.normed = parametrizations.weight_norm(nn.Conv1d(8, 8, 3, groups=8, padding_mode="reflect", dtype=dtype))
        self.head = nn.Conv1d(8, 5, 3, dilation=2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.gelu(self.normed(nn.functional.gelu(self.front(x)))))


def batch(rank: int) -> Tensor:
    torch.manual_seed(1 + rank)
    return torch.randn(4, 3, 41, dtype=torch.float64)


def shard(net: nn.Module, layers: bool, **settings: Any) -> nn.Module:
    for layer in net.children() if layers else ():
        fully_shard(layer, **settings)
    return fully_shard(net, **settings)


HALVES = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "DDP, gradients in buckets": partial(DistributedDataParallel, gradient_as_bucket_view=True),
    "DDP, unused parameters": partial(DistributedDataParallel, find_unused_parameters=True),
    "DDP, static graph": partial(DistributedDataParallel, static_graph=True),
    "FSDP of the model": partial(shard, layers=False),
    "FSDP of each layer": partial(shard, layers=True),
    "FSDP in bfloat16": partial(shard, layers=False, **HALVES),
}


def wrapped(wrap: Callable[[nn.Module], nn.Module], order: str) -> nn.Module:
    net = Net()
    if order == "convert, wrap":
        conv1d_ext.convert(net)
    model = wrap(net)
    return conv1d_ext.convert(model) if order == "wrap, convert" else model


def whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of an unwrapped model, put together from what each process holds."""
    gathered = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in values.items()}
    return {name.removeprefix("module."): t.detach().clone() for name, t in gathered.items()}


def backward(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    (run or model)(x).square().mean().backward()
    return whole({name: parameter.grad for name, parameter in model.named_parameters()})


def accumulated(order: str, rank: int) -> dict[str, Tensor]:
    """Two batches, the first without communication, with checkpointing."""
    model = wrapped(DistributedDataParallel, order)
    for context in (model.no_sync(), nullcontext()):
        with context:
            grads = backward(model, batch(rank), partial(checkpoint, model, use_reentrant=False))
    return {name: grad / 2 for name, grad in grads.items()}


def trained(order: str, rank: int) -> dict[str, Tensor]:
    """The state after three steps of FSDP, sharded layer by layer, as it is saved to be loaded anywhere."""
    model = wrapped(WRAPPERS["FSDP of each layer"], order)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, batch(rank))
        optimizer.step()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def refusal(order: str) -> str:
    model = wrapped(lambda net: nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(net, nn.BatchNorm1d(5))), order)
    try:
        model(batch(0))
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rendezvous = f"file://{directory}/rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), world_size=RANKS, rank=rank)
    results: dict[str, Any] = {}
    for order in ORDERS:
        for name, wrap in WRAPPERS.items():
            model = wrapped(wrap, order)
            results[f"{name}, {order}"] = backward(model, batch(rank))
            results[f"layers of {name}, {order}"] = [
                isinstance(layer, conv1d_ext.Conv1d) for layer in model.modules() if isinstance(layer, nn.Conv1d)
            ]
        results[f"accumulated, {order}"] = accumulated(order, rank)
        results[f"trained, {order}"] = trained(order, rank)
        results[f"refusal, {order}"] = refusal(order)
    torch.save(results, directory / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process brings back."""
    directory = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, (directory,), nprocs=RANKS)
    return [torch.load(directory / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """The gradients of one process on both batches, with torch's layers."""
    grads = [backward(Net(), batch(rank)) for rank in range(RANKS)]
    return {name: sum(g[name] for g in grads) / RANKS for name in grads[0]}


every_order = pytest.mark.parametrize("order", ORDERS)


@every_order
@pytest.mark.parametrize("name", [name for name in WRAPPERS if "bfloat16" not in name] + ["accumulated"])
def test_gradients_are_those_of_one_process_with_torch(
    results: list[dict[str, Any]], expected: dict[str, Tensor], name: str, order: str
) -> None:
    for result in results:
        torch.testing.assert_close(result[f"{name}, {order}"], expected)


@pytest.mark.parametrize("order", ORDERS[1:])
def test_gradients_in_bfloat16_are_as_near_as_torchs(
    results: list[dict[str, Any]], expected: dict[str, Tensor], order: str
) -> None:
    def error(result: dict[str, Tensor], name: str) -> float:
        return float((result[name].double() - expected[name]).norm() / expected[name].norm())

    for result in results:
        actual, torchs = result[f"FSDP in bfloat16, {order}"], result["FSDP in bfloat16, torch"]
        for name in expected:
            assert error(actual, name) < max(2 * error(torchs, name), 2**-9)


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("name", WRAPPERS)
def test_layers_are_served_in_either_order_but_for_those_sharded_one_by_one(
    results: list[dict[str, Any]], name: str, order: str
) -> None:
    """fully_shard gives a module a class of torch's own, which convert leaves alone."""
    served = order == "convert, wrap" or name != "FSDP of each layer"
    for result in results:
        assert result[f"layers of {name}, {order}"] == [served] * 3


@pytest.mark.parametrize("order", ORDERS[1:])
def test_trained_state_is_torchs(results: list[dict[str, Any]], order: str) -> None:
    state = results[0][f"trained, {order}"]
    torch.testing.assert_close(state, results[0]["trained, torch"])
    Net().load_state_dict(state)
    conv1d_ext.convert(Net()).load_state_dict(state)


@every_order
def test_synchronized_batch_norm_refuses_cpus(results: list[dict[str, Any]], order: str) -> None:
    assert "SyncBatchNorm expected input tensor to be on GPU" in results[0][f"refusal, {order}"]
