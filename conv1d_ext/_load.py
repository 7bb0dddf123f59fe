"""Loads the compiled part, `_C`, and says so where it does not fit this Python or this torch.

Of another torch it would have symbols that the loader cannot find, or, worse, can. What it was built for stands in the
file (csrc/python.cpp).
"""

import platform
import re
from importlib.util import find_spec
from pathlib import Path

import torch

_ADVICE = "install conv1d_ext again, with `pip install --no-build-isolation`"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


_spec = find_spec("conv1d_ext._C")
if _spec is None or _spec.origin is None:
    raise ImportError(f"{Path(__file__).parent} is not compiled for Python {platform.python_version()}: {_ADVICE}")
_found = re.search(rb"conv1d_ext built for torch ([\w.+]+)", Path(_spec.origin).read_bytes())
_built_for = _found[1].decode() if _found else "an unknown version"
_mismatch = f"conv1d_ext was built for torch {_built_for}, and this is torch {torch.__version__}: {_ADVICE}"
if _minor(_built_for) != _minor(torch.__version__):
    raise ImportError(_mismatch)
try:
    from . import _C  # noqa: F401
except ImportError as error:  # nightly builds of torch change under one version
    raise ImportError(f"{_mismatch} ({error})") from error
