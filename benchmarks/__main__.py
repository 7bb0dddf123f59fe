"""Measures conv1d_ext against torch, and against other engines, on layers of real models."""

import argparse
import ctypes
import itertools
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from conv1d_ext import _C

from .layers import PASSES, PUBLIC_LAYERS, Layer, load
from .measure import measure
from .peers import PEERS, missing_packages
from .plots import write_plots
from .report import machine, show, warn_if_busy, write_json
from .result import Result
from .workload import Workload

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 130 if it was interrupted, after a report of what was measured until then."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        layers = [layer for path in options.layers for layer in load(path) if _is_chosen(layer, options.filter)]
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"--layers: {error}")
    if not layers:
        parser.error(f"no layer has one of {options.filter} in its name")
    torch.backends.cudnn.conv.fp32_precision = options.fp32
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in machine().items() if value), highlight=False)
    warn_if_busy(console)
    if options.memory == "reused":
        _keep_freed_memory()
    results: list[Result] = []
    interrupted = False
    try:
        _run(options, layers, results, console)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured until now follows")
    show(results, console)
    if options.json:
        write_json(results, vars(options), options.json)
    if options.plots:
        console.print("plots:", *write_plots(results, options.plots))
    return 130 if interrupted else 0


def _run(options: argparse.Namespace, layers: list[Layer], results: list[Result], console: Console) -> None:
    """Appends to `results`, in the order of the tables, as they come."""
    devices = [device for device in options.devices if _is_there(device, console)]
    peers = [peer for peer in options.peers if _is_installed(peer, console)]
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel")  # torch's, of a copy that it makes
    cases = list(itertools.product(options.modes, options.dtypes, devices, layers))
    threads_on = {"cpu": options.threads, "cuda": options.threads[:1]}
    total = sum(len(threads_on[device]) for _, _, device, _ in cases)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        for mode, dtype, device, layer in cases:
            progress.update(task, description=f"{mode}, {dtype}, {device}: {layer.name}")
            workload = Workload(layer, device, DTYPES[dtype], mode)
            for threads in threads_on[device]:
                results.append(measure(workload, peers, threads, options.seconds))
                progress.advance(task)


def _is_chosen(layer: Layer, texts: list[str]) -> bool:
    return any(text in layer.name for text in texts)


def _is_there(device: str, console: Console) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        console.print(f"cuda: torch {torch.__version__} finds no GPU here; nothing is measured on one")
        return False
    if device == "cuda" and not _C.build_info()["cuda"]:
        console.print("cuda: conv1d_ext was built without CUDA kernels; nothing is measured on a GPU")
        return False
    return True


def _is_installed(peer: str, console: Console) -> bool:
    missing = missing_packages(peer)
    if missing:
        console.print(f"{peer}: left out, not installed: {', '.join(missing)}")
    return not missing


def _keep_freed_memory() -> None:
    """Tells malloc to give nothing back to the system, so that no result lies in memory that is touched first."""
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)):
        raise OSError("mallopt failed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"], help="default: all that are there")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="default: float32")
    add("--modes", nargs="+", choices=PASSES, default=list(PASSES), help="training: with all gradients; default: both")
    cores = torch.get_num_threads()
    add("--threads", nargs="+", type=int, default=sorted({1, cores}), help="on the CPU; default: %(default)s")
    add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=["torch"],
        help="direct, reduced-precision: conv1d_ext by the direct kernels alone, and at reduced precision; these and "
        "torch also train; default: torch",
    )
    add("--layers", nargs="+", type=Path, default=[PUBLIC_LAYERS], metavar="FILE", help="default: the layers.json here")
    add("--filter", nargs="+", default=[""], metavar="TEXT", help="only layers with one of these texts in their name")
    fp32 = "float32 convolutions on a GPU, torch's and conv1d_ext's; default: tf32, as is torch's"
    add("--fp32", choices=("tf32", "ieee"), default="tf32", help=fp32)
    memory = "fresh: malloc as it is (default); reused: it gives nothing back to the system, so pages are never new"
    add("--memory", choices=("fresh", "reused"), default="fresh", help=memory)
    add("--seconds", type=float, default=1.0, help="per layer, mode, dtype and number of threads; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--plots", type=Path, metavar="DIR", help="write plots as PNG files to this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
