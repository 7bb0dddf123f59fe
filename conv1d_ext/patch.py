"""Serves code that calls torch's own names with this package's kernels."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .functional import conv1d
from .modules import Conv1d

__all__ = ["patch_torch"]

# Conv1d adds one method to torch.nn.Conv1d, so lending that method is enough: modules made before, during and after
# the patch keep their class, and isinstance and pickle see nothing of it.
_REPLACEMENTS: tuple[tuple[object, str, object], ...] = (
    (torch, "conv1d", conv1d),
    (torch.nn.functional, "conv1d", conv1d),
    (torch.nn.Conv1d, "_conv_forward", Conv1d._conv_forward),
)
_lock = threading.Lock()
_depth = 0
_originals: list[object] = []


@contextmanager
def patch_torch() -> Iterator[None]:
    """While active, torch.conv1d, torch.nn.functional.conv1d and torch.nn.Conv1d compute with this package's kernels.

    A context manager, and as ``@patch_torch()`` a decorator. Contexts may nest and overlap; when the last one ends, by
    an exception or not, torch is as before. Shapes, dtypes and errors are those of torch.

    The patch holds for the whole process: other threads see it as well, though only those that call while it is
    active. Names that were imported before (``from torch.nn.functional import conv1d``) keep torch's function. What
    torch.compile compiled meanwhile stays compiled as it is.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _originals[:] = [getattr(owner, name) for owner, name, _ in _REPLACEMENTS]
            for owner, name, ours in _REPLACEMENTS:
                setattr(owner, name, ours)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for (owner, name, _), original in zip(_REPLACEMENTS, _originals, strict=True):
                    setattr(owner, name, original)
