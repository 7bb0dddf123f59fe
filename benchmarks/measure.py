"""Measures a layer with all engines in turns, so that whatever slows the machine down slows all of them.

A round takes a sample of each engine, one after the other; the ratio to a peer is the median, over the rounds, of the
ratio within a round. A copy of as many bytes, the yardstick of memory bandwidth, takes part like an engine.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterable
from operator import truediv
from statistics import median

import torch

from conv1d_ext import _C

from . import peers
from .peers import OURS, Engine
from .result import COPY, Result
from .workload import Workload, rotation

MIN_ROUNDS, MAX_ROUNDS = 3, 300
# An engine is repeated for so long in a sample: a thousand times what reading the clock takes, and many times what
# waiting for a GPU costs.
SAMPLE_SECONDS = 1e-3
SETTLE_SECONDS = 5e-3  # the idle threads of a pool spin for some milliseconds before they sleep


def measure(workload: Workload, peer_names: Iterable[str], threads: int, seconds: float) -> Result:
    """After a warm-up, runs rounds for about `seconds`, and at least three of them."""
    torch.set_num_threads(threads)
    synchronize = torch.cuda.synchronize if workload.device == "cuda" else _nothing_to_wait_for
    with torch.inference_mode(workload.mode == "forward"):
        engines, failures = _peer_engines(workload, peer_names, threads)
        engines[OURS] = workload.our_engine()
        engines[COPY] = _copy_engine(workload.layer.bytes(workload.mode, workload.dtype.itemsize), workload.device)
        pause = SETTLE_SECONDS if threads > 1 and any(map(peers.has_own_threads, engines)) else 0.0
        samples = take_turns(engines, len(workload.inputs), seconds, pause, synchronize)
    ratios = {name: median(map(truediv, times, samples[OURS])) for name, times in samples.items()}
    return Result(
        layer=workload.layer,
        device=workload.device,
        dtype=str(workload.dtype).removeprefix("torch."),
        mode=workload.mode,
        threads=threads,
        rounds=len(samples[OURS]),
        seconds={name: median(times) for name, times in samples.items()},
        ratios={name: ratio for name, ratio in ratios.items() if name not in (OURS, COPY)},
        memory_share=ratios[COPY],
        errors=workload.errors,
        peak=_fma_peak(workload.device, workload.dtype, threads),
        failures=failures,
    )


def take_turns(
    engines: dict[str, Engine], operands: int, seconds: float, pause: float, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds for one call, per engine and round. With a pause, each sample starts with an untimed call after it."""
    rotation = itertools.cycle(range(operands))

    def sample(engine: Engine, calls: int) -> float:
        if pause:
            time.sleep(pause)
            engine(next(rotation))
        synchronize()
        start = time.perf_counter()
        for i in itertools.islice(rotation, calls):
            engine(i)
        synchronize()
        return (time.perf_counter() - start) / calls

    gc.collect()
    gc.disable()
    try:
        for engine in engines.values():
            sample(engine, 1)
        calls = {name: max(1, round(SAMPLE_SECONDS / sample(engine, 1))) for name, engine in engines.items()}
        samples: dict[str, list[float]] = {name: [] for name in engines}
        start = time.perf_counter()
        for turn in range(MAX_ROUNDS):
            if turn >= MIN_ROUNDS and time.perf_counter() - start > seconds:
                break
            for name, engine in engines.items():
                samples[name].append(sample(engine, calls[name]))
    finally:
        gc.enable()
    return samples


def _peer_engines(
    workload: Workload, peer_names: Iterable[str], threads: int
) -> tuple[dict[str, Engine], dict[str, str]]:
    """Those which can compute the workload, and why others failed to."""
    engines, failures = {}, {}
    for peer in peer_names:
        if peers.supports(peer, workload.mode, workload.dtype, workload.device):
            try:
                engine = workload.peer_engine(peer, threads)
                engine(0)
                engines[peer] = engine
            except Exception as error:  # of any kind: the others can still be compared
                failures[peer] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return engines, failures


def _copy_engine(nbytes: int, device: str) -> Engine:
    """Reads half of the bytes and writes the other half."""
    sources = rotation(torch.ones(nbytes // 2, dtype=torch.uint8, device=device))
    destination = torch.zeros_like(sources[0])
    return lambda i: destination.copy_(sources[i % len(sources)])


def _fma_peak(device: str, dtype: torch.dtype, threads: int) -> float | None:
    """The best of a few; 16-bit types are held against float32's, which instructions of their own can surpass."""
    if device != "cpu":
        return None
    per_core = max(_C.fma_peak() for _ in range(3)) * 1e9
    return per_core * threads * (0.5 if dtype == torch.float64 else 1)


def _nothing_to_wait_for() -> None:
    pass
