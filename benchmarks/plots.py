"""The results as PNG files: the speed-up layer by layer, and the roofline with every layer on it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    peers = list(dict.fromkeys(peer for result in results for peer in result.ratios))
    names = [result.layer.name for result in results]
    if "torch" in peers:
        axes.barh(names, [result.ratios.get("torch", 0) for result in results], color="C0", alpha=0.6, label="torch")
    for i, peer in enumerate(peers):
        if peer != "torch":
            points = [(result.ratios[peer], result.layer.name) for result in results if peer in result.ratios]
            axes.plot(*zip(*points, strict=True), "o", color=f"C{i + 1}", markersize=4, label=peer)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="times as fast as the other, log scale", ymargin=0.01)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()


def _draw_roofline(axes: Axes, results: Sequence[Result]) -> None:
    """The roof is that of the median layer: a small one, in cache, can be above what memory allows."""
    bandwidth = median(result.bandwidth for result in results)
    intensities = [result.flops / result.bytes for result in results]
    axes.scatter(intensities, [result.speed / 1e9 for result in results], s=15)
    for result, intensity in zip(results, intensities, strict=True):
        axes.annotate(result.layer.name, (intensity, result.speed / 1e9), fontsize=6, xytext=(3, 3),
                      textcoords="offset points")  # fmt: skip
    ends = min(intensities) / 2, max(intensities) * 2
    axes.plot(ends, [intensity * bandwidth / 1e9 for intensity in ends], "--", color="C1",
              label=f"memory, {bandwidth / 1e9:.0f} GB/s (median copy)")  # fmt: skip
    peaks = [result.peak for result in results if result.peak is not None]
    if peaks:
        axes.axhline(median(peaks) / 1e9, linestyle="--", color="C3", label=f"FMA, {median(peaks) / 1e9:.0f} GFLOP/s")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend()
