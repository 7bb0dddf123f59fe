"""The emulator's libraries for Python: built when they are older than their sources."""

import ctypes
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "emulator"


def load(target: str, name: str, **variables: object) -> ctypes.CDLL:
    """The Makefile's target, with its variables."""
    jobs = len(os.sched_getaffinity(0))
    settings = [f"{key}={value}" for key, value in variables.items()]
    made = subprocess.run(
        ["make", "-s", f"-j{jobs}", "-C", str(HERE), target, *settings], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return ctypes.CDLL(str(Path(variables.get("OUT", BUILD)) / name))
