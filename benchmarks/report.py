"""What came out: a table and its summary for people, JSON for machines."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import conv1d_ext
from conv1d_ext import _C

from .peers import OURS, VARIANTS
from .result import Result

LEGEND = (
    "ms, GFLOP/s: conv1d_ext. of limit: the share of the FMA peak, which transforms and matrix units can exceed, or of "
    "the bandwidth of a copy, whichever is greater. x: the other's time divided by conv1d_ext's. error: the largest "
    "against float64, relative to the largest element."
)


def by_configuration(results: Iterable[Result]) -> dict[str, list[Result]]:
    """By title: the results that belong in one table."""
    tables: dict[str, list[Result]] = {}
    for result in results:
        threads = f", {result.threads} thread{'s' * (result.threads > 1)}" * (result.device == "cpu")
        tables.setdefault(f"{result.mode}, {result.dtype}, {result.device}{threads}", []).append(result)
    return tables


def table(title: str, results: Sequence[Result], all_results: Iterable[Result]) -> Table:
    """`all_results` are where the CPU's times are found for the GPU's."""
    peers = list(dict.fromkeys(peer for result in results for peer in result.ratios))
    on_cpu = _cpu_seconds(all_results) if results[0].device != "cpu" else {}
    table = Table(title=title)
    others = [peer for peer in peers if peer in VARIANTS] + ["torch"]
    columns = ["MFLOP", "ms", "GFLOP/s", "of limit", *(f"x {peer}" for peer in peers)]
    columns += ["error", *(f"{other}'s error" for other in others)]
    table.add_column("layer", overflow="fold")
    for column in columns + ["x CPU"] * bool(on_cpu):
        table.add_column(column, justify="right")
    for result in results:
        share, limited_by = result.limit
        cells = [
            f"{result.flops / 1e6:,.1f}",
            f"{result.seconds[OURS] * 1e3:.4g}",
            f"{result.speed / 1e9:.1f}",
            f"{share:.0%} {limited_by}",
            *(_ratio(result.ratios.get(peer)) for peer in peers),
            *(f"{result.errors[name]:.0e}" for name in (OURS, *others)),
        ]
        if on_cpu:
            cpu_seconds = on_cpu.get((result.layer, result.dtype, result.mode))
            cells.append(_ratio(cpu_seconds and cpu_seconds / result.seconds[OURS]))
        table.add_row(result.layer.name, *cells)
    return table


def summary(results: Sequence[Result]) -> list[str]:
    """A line per peer, one for the best peer of each layer, and one per peer and reason why it did not take part."""
    ratios: dict[str, dict[str, float]] = {}
    failures: dict[str, list[str]] = {}
    for result in results:
        for peer, ratio in result.ratios.items():
            ratios.setdefault(peer, {})[result.layer.name] = ratio
        for peer, reason in result.failures.items():
            failures.setdefault(f"{peer} failed with {reason}", []).append(result.layer.name)
    others = [peer for peer in ratios if peer not in VARIANTS]
    if len(others) > 1:
        ratios["best of these"] = {
            result.layer.name: min(result.ratios[peer] for peer in others if peer in result.ratios)
            for result in results
        }
    lines = [f"against {peer}: {_verdict(by_layer)}" for peer, by_layer in ratios.items()]
    return lines + [f"{failure}: {', '.join(names)}" for failure, names in failures.items()]


def show(results: Sequence[Result], console: Console) -> None:
    for title, group in by_configuration(results).items():
        console.print(table(title, group, results))
        for line in summary(group):
            console.print(line, highlight=False, soft_wrap=True)
        console.print()
    if results:
        console.print(LEGEND)


def write_json(results: Sequence[Result], settings: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "settings": settings, "results": [result.as_json() for result in results]}
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")


def machine() -> dict[str, Any]:
    cpus = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": f"{cpus[0]} x {len(cpus)}" if cpus else platform.processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "float32 there": torch.backends.cudnn.conv.fp32_precision if torch.cuda.is_available() else None,
        "isa": _C.isa(),
        "torch": torch.__version__,
        "conv1d_ext": conv1d_ext.__version__,
        "platform": platform.platform(),
    }


def warn_if_busy(console: Console) -> None:
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"other programs are running (load {load:.1f}): with several threads the figures mean little")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _verdict(ratios: dict[str, float]) -> str:
    """Geometric mean, lowest and losers of the ratios by layer."""
    lowest = min(ratios, key=ratios.__getitem__)
    losers = [f"{name} {ratio:.2f}" for name, ratio in sorted(ratios.items(), key=lambda item: item[1]) if ratio < 1]
    return (
        f"geometric mean {geometric_mean(ratios.values()):.2f}x over {len(ratios)} layers, "
        f"lowest {ratios[lowest]:.2f}x ({lowest}), slower on {', '.join(losers) or 'none'}"
    )


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio >= 1 else f"[red]{ratio:.2f}[/red]"


def _cpu_seconds(results: Iterable[Result]) -> dict[tuple, float]:
    """By layer, dtype and mode: the CPU's with as many threads as served it best."""
    seconds: dict[tuple, float] = {}
    for result in results:
        if result.device == "cpu":
            key = result.layer, result.dtype, result.mode
            seconds[key] = min(result.seconds[OURS], seconds.get(key, float("inf")))
    return seconds
