"""Trains InceptionTime on OSULeaf twice from the same seed: with torch.nn.Conv1d, and converted to conv1d_ext.

OSULeaf (UCR archive: 200 + 242 outlines of leaves, 427 points, 6 species) and the network come with sktime. Both runs
start from the same weights, see the same batches and take turns, an epoch each, so that a busy machine slows both.
Ends with a table, writes the learning curves as a PNG, and exits with 1 where the runs disagree beyond rounding.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sktime.datasets import load_UCR_UEA_dataset
from sktime.networks.inceptiontime import InceptionTimeNetworkTorch
from torch import Tensor, nn

import conv1d_ext

BATCH_SIZE = 20
LEARNING_RATE = 2e-3

# Rounding differs between the two, and training amplifies it. Measured with torch's layers on both sides and initial
# weights that differ in the last bit alone: in float32 the losses are 2e-5 apart after 5 steps, 1e-2 after 40, and from
# then on the two are as good as two seeds. Hence three promises, each as strict as it can soundly be; a kernel with one
# wrong element in one gradient breaks the first by many orders of magnitude.
FIRST_STEPS = 5
FLOAT64_TOLERANCE = 1e-11  # relative difference of the losses at each of these steps; rounding alone: 1e-15
FLOAT32_TOLERANCE = 1e-3
# Of the final accuracies. Two independent ones of p on 242 series differ by sqrt(2 p (1 - p) / 242), at p = 0.9 by 2.7
# points; three times that.
ACCURACY_TOLERANCE = 0.08


@dataclass
class Run:
    """One network in training, and what was measured."""

    name: str
    network: nn.Module
    steps: int
    losses: list[float] = field(default_factory=list)  # per step
    accuracies: list[float] = field(default_factory=list)  # per epoch, on the test set
    seconds: list[float] = field(default_factory=list)  # per epoch, training alone

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, LEARNING_RATE, total_steps=self.steps)

    def train_epoch(self, inputs: Tensor, labels: Tensor, batches: tuple[Tensor, ...]) -> None:
        self.network.train()
        start = time.perf_counter()
        for batch in batches:
            loss = nn.functional.cross_entropy(self.network(inputs[batch]), labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    @torch.inference_mode()
    def test(self, inputs: Tensor, labels: Tensor) -> None:
        self.network.eval()
        predictions = torch.cat([self.network(part).argmax(1) for part in inputs.split(BATCH_SIZE)])
        self.accuracies.append((predictions == labels).double().mean().item())

    def epoch_losses(self) -> list[float]:
        return np.reshape(self.losses, (len(self.seconds), -1)).mean(1).tolist()


def load(split: str) -> tuple[Tensor, Tensor]:
    """Series [N, L, 1] in float32, as the network takes them, and labels [N] from 0."""
    series, labels = load_UCR_UEA_dataset("OSULeaf", split=split, return_type="numpy3D")
    return torch.from_numpy(series).float().transpose(1, 2), torch.from_numpy(labels.astype(np.int64) - 1)


def make_runs(dtype: torch.dtype, steps: int) -> list[Run]:
    torch.manual_seed(0)
    network = InceptionTimeNetworkTorch(input_size=1, num_classes=6, activation_hidden=nn.ReLU()).to(dtype)
    converted = conv1d_ext.convert(copy.deepcopy(network))
    return [Run("torch.nn.Conv1d", network, steps), Run("conv1d_ext.Conv1d", converted, steps)]


def shuffled_batches(epoch: int, size: int) -> tuple[Tensor, ...]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(epoch)).split(BATCH_SIZE)


def train_float64(progress: Progress) -> list[Run]:
    inputs, labels = load("train")
    runs = make_runs(torch.float64, FIRST_STEPS)
    for run in progress.track(runs, description=f"float64, {FIRST_STEPS} steps"):
        run.train_epoch(inputs.double(), labels, shuffled_batches(0, len(inputs))[:FIRST_STEPS])
    return runs


def train_float32(epochs: int, progress: Progress) -> list[Run]:
    (inputs, labels), (test_inputs, test_labels) = load("train"), load("test")
    runs = make_runs(torch.float32, epochs * len(shuffled_batches(0, len(inputs))))
    progress.console.print(" | ".join(run.name for run in runs))
    for epoch in progress.track(range(epochs), description=f"float32, {epochs} epochs"):
        for run in runs if epoch % 2 == 0 else reversed(runs):
            run.train_epoch(inputs, labels, shuffled_batches(epoch, len(inputs)))
            run.test(test_inputs, test_labels)
        progress.console.print(
            f"epoch {epoch + 1:2}",
            "loss " + " | ".join(f"{run.epoch_losses()[-1]:.4f}" for run in runs),
            "accuracy " + " | ".join(f"{run.accuracies[-1]:.3f}" for run in runs),
            "seconds " + " | ".join(f"{run.seconds[-1]:.1f}" for run in runs),
            sep="   ",
        )
    return runs


def disagreements(float64: list[Run], float32: list[Run]) -> list[str]:
    """The promises at the top of this file that the runs break, in words."""
    found = []
    for dtype, runs, tolerance in (("float64", float64, FLOAT64_TOLERANCE), ("float32", float32, FLOAT32_TOLERANCE)):
        torchs, ours = (np.array(run.losses[:FIRST_STEPS]) for run in runs)
        difference = np.max(np.abs(ours / torchs - 1))
        text = f"first {FIRST_STEPS} losses in {dtype}: at most {difference:.0e} apart, {tolerance:.0e} allowed"
        print(text)
        if not difference <= tolerance:  # so that NaN disagrees
            found.append(text)
    torchs, ours = (run.accuracies[-1] for run in float32)
    if not abs(ours - torchs) <= ACCURACY_TOLERANCE:
        found.append(f"final accuracies: {abs(ours - torchs):.3f} apart, {ACCURACY_TOLERANCE} allowed")
    return found


def report(runs: list[Run], console: Console) -> None:
    table = Table(title=f"InceptionTime on OSULeaf, float32, {torch.get_num_threads()} threads")
    for column in ("layer", "final loss", "test accuracy", "s per epoch (median)"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for run in runs:
        seconds = statistics.median(run.seconds)
        table.add_row(run.name, f"{run.epoch_losses()[-1]:.4f}", f"{run.accuracies[-1]:.3f}", f"{seconds:.2f}")
    console.print(table)


def plot(runs: list[Run], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for run, style in zip(runs, ("-", "--"), strict=True):
        epochs = range(1, len(run.seconds) + 1)
        axes[0].semilogy(epochs, run.epoch_losses(), style, marker="o", label=run.name)
        axes[1].plot(epochs, run.accuracies, style, marker="o", label=run.name)
    for axis, title in zip(axes, ("training loss", "test accuracy"), strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plot", type=Path, default=Path("build/train_ucr.png"))
    options = parser.parse_args()
    console = Console()
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel")  # torch's, of a copy that it makes
    with Progress(console=console) as progress:
        float64 = train_float64(progress)
        float32 = train_float32(options.epochs, progress)
    plot(float32, options.plot)
    console.print(f"learning curves: {options.plot}")
    found = disagreements(float64, float32)
    report(float32, console)
    for disagreement in found:
        print(f"DISAGREEMENT: {disagreement}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
