"""Measures how the cost of a layer grows with its length, batch and channels, for torch and conv1d_ext in turns.

`python -m benchmarks.growth --plot growth.png`
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .layers import PASSES, Layer
from .measure import take_turns
from .peers import OURS
from .report import warn_if_busy
from .workload import Workload

# Bound by arithmetic, so that the cost of an operation should be the same at every size.
_LENGTH = Layer("length", "none", 1, 32, 0, 32, 11, padding=5)
_BATCH = Layer("batch", "none", 0, 64, 1000, 64, 5, padding=2)
_CHANNELS = Layer("channels", "none", 1, 0, 2000, 0, 3, padding=1)
SWEEPS: dict[str, dict[int, Layer]] = {
    "length": {length: replace(_LENGTH, in_length=length) for length in (10**4, 10**5, 10**6, 10**7)},
    "batch": {batch: replace(_BATCH, batch=batch) for batch in (1, 4, 16, 64, 256)},
    "channels": {size: replace(_CHANNELS, in_channels=size, out_channels=size) for size in (64, 256, 1024, 2048)},
}

Costs = dict[int, dict[str, float]]  # by size and engine: seconds for one FLOP


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="default: all")
    parser.add_argument("--modes", nargs="+", choices=PASSES, default=list(PASSES), help="default: both")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each size; default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot to this PNG file")
    options = parser.parse_args(arguments)
    console = Console()
    warn_if_busy(console)
    torch.set_num_threads(options.threads)
    cases = [(mode, sweep, size) for mode in options.modes for sweep in options.sweeps for size in SWEEPS[sweep]]
    costs: dict[tuple[str, str], Costs] = {}
    for mode, sweep, size in track(cases, console=console):
        costs.setdefault((mode, sweep), {})[size] = _cost(SWEEPS[sweep][size], mode, options.seconds)
    console.print(_table(costs, options.threads), "spread: the largest cost of an operation over the smallest")
    if options.plot:
        _plot(costs, options.plot)
    return 0


def _cost(layer: Layer, mode: str, seconds: float) -> dict[str, float]:
    workload = Workload(layer, "cpu", torch.float32, mode)
    with torch.inference_mode(mode == "forward"):
        engines = {"torch": workload.peer_engine("torch", torch.get_num_threads()), OURS: workload.our_engine()}
        samples = take_turns(engines, len(workload.inputs), seconds, 0, lambda: None)
    return {name: median(times) / layer.flops(mode) for name, times in samples.items()}


def _table(costs: dict[tuple[str, str], Costs], threads: int) -> Table:
    table = Table(title=f"GFLOP/s as a size grows, float32, cpu, {threads} thread{'s' * (threads > 1)}")
    for column in ("mode", "of", "engine", "sizes", "GFLOP/s", "spread"):
        table.add_column(column, justify="right" if column in ("GFLOP/s", "spread") else "left")
    for (mode, sweep), by_size in costs.items():
        for engine in ("torch", OURS):
            values = [cost[engine] for cost in by_size.values()]
            speeds = ", ".join(f"{1e-9 / value:.1f}" for value in values)
            sizes = ", ".join(f"{size:,}" for size in by_size)
            table.add_row(mode, sweep, engine, sizes, speeds, f"{max(values) / min(values):.2f}")
    return table


def _plot(costs: dict[tuple[str, str], Costs], path: Path) -> None:
    """A row for each mode, a column for each size; the cost of an operation in picoseconds."""
    modes, sweeps = (list(dict.fromkeys(key)) for key in zip(*costs, strict=True))
    figure = Figure(figsize=(4 * len(sweeps), 3 * len(modes)), layout="constrained")
    all_axes = figure.subplots(len(modes), len(sweeps), squeeze=False)
    for (mode, sweep), by_size in costs.items():
        axes = all_axes[modes.index(mode)][sweeps.index(sweep)]
        for engine in ("torch", OURS):
            axes.plot(list(by_size), [cost[engine] * 1e12 for cost in by_size.values()], "o-", label=engine)
        axes.set(xscale="log", xlabel=sweep, ylabel="ps for a FLOP", title=mode, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
