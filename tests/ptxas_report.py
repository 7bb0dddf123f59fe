"""What ptxas says of the kernels, checked: no spills, no stack, and registers for as many blocks on a
multiprocessor as each kernel's __launch_bounds__ wants there. Shared memory is dynamic: plans decide on it, and
tests/test_cuda_kernels.py holds them to what devices have.

`python tests/ptxas_report.py LOG FOLDER`: what nvcc printed with -Xptxas=-v, and where it kept its files.
"""

import re
import subprocess
import sys
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor

KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
AMOUNTS = {
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spills": re.compile(r"(\d+) bytes spill"),
    "registers": re.compile(r"Used (\d+) registers"),
}
ENTRY = re.compile(r"\.entry (\w+)\((.*?)\n\{", re.DOTALL)


def reports(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """By kernel and architecture, the last of each: the most of what is said of it and of functions that it calls."""
    found = {}
    for block in re.split(r"(?=ptxas info *: Compiling entry)", log):
        if match := KERNEL.search(block):
            found[match.groups()] = {
                key: max(map(int, amount.findall(block)), default=0) for key, amount in AMOUNTS.items()
            }
    return found


def launch_bounds(folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """By kernel and architecture: threads of a block, and blocks on a multiprocessor; 0 where they are not stated."""
    bounds = {}
    for path in folder.glob("*.compute_*.ptx"):
        for kernel, head in ENTRY.findall(path.read_text()):
            threads = re.search(r"\.maxntid (\d+)", head)
            blocks = re.search(r"\.minnctapersm (\d+)", head)
            arch = path.suffixes[-2].removeprefix(".compute_")
            bounds[kernel, arch] = int(threads[1]) if threads else 0, int(blocks[1]) if blocks else 0
    return bounds


def problems(report: dict[str, int], threads: int, blocks: int) -> list[str]:
    registers = -(-report["registers"] // 8) * 8  # as they are handed out
    rules = {
        "spills": report["spills"] == 0,
        "has a stack frame": report["stack"] == 0,
        "states no __launch_bounds__(threads, blocks)": threads > 0 and blocks > 0,
        "has too many registers for its blocks": registers * threads * blocks <= REGISTERS,
    }
    return [rule for rule, holds in rules.items() if not holds]


def demangled(names: list[str]) -> list[str]:
    command = ["c++filt", "-p", *names]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [line.replace("conv1d_ext::cuda::", "") for line in lines]


def main(log: Path, folder: Path) -> int:
    found, bounds = reports(log.read_text()), launch_bounds(folder)
    failures = 0
    for name, (key, (threads, blocks)) in sorted(
        zip(demangled([kernel for kernel, _ in bounds]), bounds.items(), strict=True)
    ):
        report = found.get(key, dict.fromkeys(AMOUNTS, 0))
        wrong = problems(report, threads, blocks) if key in found else ["is not in the log"]
        failures += bool(wrong)
        numbers = f"{report['registers']:3} registers, {threads} threads x {blocks} blocks"
        print(f"sm_{key[1]:3} {numbers}  {name}", *wrong, sep="  ")
    print(f"ptxas: {len(bounds) - failures} kernels passed, {failures} failed")
    return 0 if bounds and not failures else 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
