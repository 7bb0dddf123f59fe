"""Measures whole models of transformers, as they are and with this package's kernels, in turns.

Converted by conv1d_ext.convert, and under patch_torch() for those that call torch.nn.functional.conv1d, as Mamba does.
Built from their configuration, with random weights: nothing is downloaded. `python -m benchmarks.models`
"""

import argparse
import copy
import sys
from collections.abc import Callable
from operator import truediv
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    EncodecConfig,
    EncodecModel,
    MambaConfig,
    MambaModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

import conv1d_ext

from .measure import take_turns
from .peers import OURS
from .report import warn_if_busy

TOLERANCE = 1e-3  # of the largest element: float32 rounding through some dozens of layers


def _wav2vec2() -> tuple[nn.Module, Tensor]:
    return Wav2Vec2Model(Wav2Vec2Config()), torch.randn(1, 80000)  # base; 5 s at 16 kHz


def _encodec() -> tuple[nn.Module, Tensor]:
    model = EncodecModel(EncodecConfig())  # 24 kHz; without the quantiser, where rounding would decide between codes
    return nn.Sequential(model.encoder, model.decoder), torch.randn(1, 1, 24000)


def _hifigan() -> tuple[nn.Module, Tensor]:
    return SpeechT5HifiGan(SpeechT5HifiGanConfig()), torch.randn(1, 100, 80)  # frames of a mel spectrogram, 1.6 s


def _mamba() -> tuple[nn.Module, Tensor]:
    config = MambaConfig(num_hidden_layers=2)  # of the 130M model's 24
    return MambaModel(config), torch.randint(config.vocab_size, (1, 256))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "wav2vec2": _wav2vec2,
    "encodec": _encodec,
    "hifigan": _hifigan,
    "mamba": _mamba,
}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where the outputs of a model's two versions differ by more than rounding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each model; default: %(default)s")
    options = parser.parse_args(arguments)
    console = Console()
    warn_if_busy(console)
    torch.set_num_threads(options.threads)
    table = Table(title=f"models, float32, cpu, {options.threads} thread{'s' * (options.threads > 1)}")
    table.add_column("model")
    for column in ("Conv1d layers", "torch ms", f"{OURS} ms", "x torch", "difference"):
        table.add_column(column, justify="right")
    differences = []
    try:
        for name in track(options.models, console=console):
            cells, difference = _compare(name, options.seconds)
            table.add_row(name, *cells)
            differences.append(difference)
    except KeyboardInterrupt:
        console.print("interrupted: what was measured until now follows")
    console.print(table, "difference: the largest of the outputs, relative to the largest element", sep="\n")
    return 0 if all(difference < TOLERANCE for difference in differences) else 1


@torch.inference_mode()
def _compare(name: str, seconds: float) -> tuple[list[str], float]:
    """The model's cells of the table, and how far the outputs are apart."""
    torch.manual_seed(0)
    stock, input = MODELS[name]()
    stock.eval()
    ours = conv1d_ext.convert(copy.deepcopy(stock))

    @conv1d_ext.patch_torch()
    def run_ours() -> Tensor | tuple[Tensor, ...]:
        return ours(input)

    expected, actual = _output(stock(input)), _output(run_ours())
    difference = ((actual - expected).abs().max() / expected.abs().max()).item()
    engines = {"torch": lambda _: stock(input), OURS: lambda _: run_ours()}
    samples = take_turns(engines, operands=1, seconds=seconds, pause=0, synchronize=lambda: None)
    converted = sum(isinstance(module, conv1d_ext.Conv1d) for module in ours.modules())
    milliseconds = [f"{median(times) * 1e3:.4g}" for times in samples.values()]
    ratio = median(map(truediv, samples["torch"], samples[OURS]))
    return [str(converted), *milliseconds, f"{ratio:.2f}", f"{difference:.0e}"], difference


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


if __name__ == "__main__":
    sys.exit(main())
