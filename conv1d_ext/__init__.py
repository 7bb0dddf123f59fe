"""A drop-in torch.nn.Conv1d with hand-written kernels.

Conv1d, LazyConv1d    the modules
functional.conv1d     the function
convert, revert       move the Conv1d modules of a model to these kernels and back
patch_torch           serves code that calls torch.nn.functional.conv1d
backends              switches, as in torch.backends
explain               what a layer costs, how it is computed, and what limits its speed
show_config           what was built, what is in use, and whether it computes correctly
"""

__version__ = "0.1.0"

from . import _load  # noqa: F401, I001  first: it says what is wrong where _C does not fit
from . import backends, functional
from .config import show_config
from .convert import convert, revert
from .explain import explain
from .modules import Conv1d, LazyConv1d
from .patch import patch_torch

__all__ = [
    "Conv1d", "LazyConv1d", "backends", "convert", "explain", "functional", "patch_torch", "revert", "show_config",
]  # fmt: skip
