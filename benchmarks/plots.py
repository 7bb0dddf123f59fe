"""The results as PNG files: the speed-up layer by layer, and the roofline with every layer on it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .report import by_configuration
from .result import Result


def write_plots(results: Iterable[Result], directory: Path) -> list[Path]:
    """Two files for each table. Returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for title, group in by_configuration(results).items():
        for kind, draw, height in (("speedup", _draw_speedup, 1.5 + 0.2 * len(group)), ("roofline", _draw_roofline, 7)):
            figure = Figure(figsize=(10, height), layout="constrained")
            draw(figure.subplots(), group)
            figure.suptitle(title)
            paths.append(directory / f"{kind}-{title.replace(', ', '-').replace(' ', '-')}.png")
            figure.savefig(paths[-1], dpi=120)
    return paths


def _draw_speedup(axes: Axes, results: Sequence[Result]) -> None:
    """A bar for torch, which starts at 1, and a dot for each other peer."""
    peers = list(dict.fromkeys(peer for result in results for peer in result.ratios))
    for i, peer in enumerate(peers):
        names = [result.layer.name for result in results if peer in result.ratios]
        ratios = [result.ratios[peer] for result in results if peer in result.ratios]
        if peer == "torch":
            axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color="C0", alpha=0.6, label=peer)
        else:
            axes.plot(ratios, names, "o", color=f"C{i}", markersize=4, label=peer)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="conv1d_ext: times as fast as", ymargin=0.01)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()


def _draw_roofline(axes: Axes, results: Sequence[Result]) -> None:
    """The roof is the median layer's: where a small layer stays in cache, memory is no limit and it can lie above."""
    intensities = [result.flops / result.bytes for result in results]
    speeds = [result.speed / 1e9 for result in results]
    axes.scatter(intensities, speeds, s=15)
    for result, *point in zip(results, intensities, speeds, strict=True):
        axes.annotate(result.layer.name, point, fontsize=6, xytext=(3, 3), textcoords="offset points")
    bandwidth = median(result.bandwidth for result in results) / 1e9
    peaks = [result.peak / 1e9 for result in results if result.peak is not None]
    label = f"{bandwidth:.0f} GB/s" + (f", {median(peaks):.0f} GFLOP/s" if peaks else "")
    roof = np.geomspace(min(intensities) / 2, max(intensities) * 2, 500)
    axes.plot(roof, np.minimum(roof * bandwidth, median(peaks) if peaks else np.inf), "--", color="C3", label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend()
