"""Moves the Conv1d modules of a model to this package's kernels, and back.

The classes differ in one method, so a module changes sides by its `__class__` and keeps all else: parameters, buffers,
hooks, flags, the places where the model and the optimizer refer to it. For a subclass of torch.nn.Conv1d such a class
is made, with conv1d_ext.Conv1d between the two.
"""

import copyreg
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .modules import Conv1d, LazyConv1d

__all__ = ["convert", "revert"]

logger = logging.getLogger("conv1d_ext")

Module = TypeVar("Module", bound=torch.nn.Module)
Class = type[torch.nn.Module]

_TO_OURS: dict[Class, Class] = {torch.nn.Conv1d: Conv1d, torch.nn.LazyConv1d: LazyConv1d}
_TO_TORCHS = {ours: torchs for torchs, ours in _TO_OURS.items()}


def convert(module: Module, report: Callable[[str], object] = logger.info) -> Module:
    """Swaps every torch.nn.Conv1d in `module`, or `module` itself, for conv1d_ext.Conv1d, in place.

    torch.nn.LazyConv1d is swapped as well, and so are parametrized modules (weight_norm, spectral_norm, ...), which
    stay parametrized. Subclasses of torch.nn.Conv1d keep their methods, and what these call by `super()` or leave to
    torch.nn.Conv1d is computed by this package. Left alone are torch's own subclasses (quantization), subclasses of
    LazyConv1d, and TorchScript modules, convert before scripting. Models that call torch.nn.functional.conv1d
    themselves, also with the weights of a module, are served by patch_torch().

    Args:
        module: a model of any kind.
        report: gets a text that says what was swapped and what was left, for example `print`; by default it goes to the
            logger "conv1d_ext" at level INFO.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no torch.nn.Module.
    """
    return _swap(module, _TO_OURS, report)


def revert(module: Module, report: Callable[[str], object] = logger.info) -> Module:
    """Undoes `convert`: swaps every conv1d_ext.Conv1d for torch.nn.Conv1d, in place. The arguments are the same.

    Tools that find layers by their exact type, or by torch's operator, want it first: those that fold BatchNorm into
    the layer before, ``model = convert(fuse(revert(model)))`` with torch.fx.experimental.optimization.fuse, and
    quantization, eager, fx and pt2e. The exporters do not, torch.onnx.export included; only a program of torch.export
    that is to go on to ONNX must have been exported from the reverted model.
    """
    return _swap(module, _TO_TORCHS, report)


def _swap(root: Module, classes: dict[Class, Class], report: Callable[[str], object]) -> Module:
    if not isinstance(root, torch.nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(root).__name__}")
    swapped, left = [], []
    for name, module in root.named_modules():
        old = type_before_parametrizations(module)
        line = f"{name or '(the module itself)'}: {old.__name__}"
        if classes is _TO_OURS and _is_foreign(old):
            _add_subclass(old)
        if new := classes.get(old):
            module.__class__ = _parametrized(type(module), new) if is_parametrized(module) else new
            swapped.append(line)
        elif isinstance(module, torch.nn.Conv1d) and old not in classes.values():
            left.append(line)
    summary = f"Conv1d modules: {len(swapped)} swapped, {len(left)} left as they are"
    report("\n  ".join([summary, *(f"swapped {line}" for line in swapped), *(f"left {line}" for line in left)]))
    return root


def _is_foreign(cls: Class) -> bool:
    """A subclass of torch.nn.Conv1d that neither torch nor this package wrote, and that has not been met before."""
    known = cls in _TO_OURS or cls.__module__.startswith("torch.")
    return issubclass(cls, torch.nn.Conv1d) and not issubclass(cls, (Conv1d, torch.nn.LazyConv1d)) and not known


def _add_subclass(cls: Class) -> None:
    """A class like `cls`, whose `super()` finds conv1d_ext.Conv1d before torch.nn.Conv1d."""
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    ours = type(cls.__name__, (cls, Conv1d), {**names, "__reduce_ex__": _reduce_ex})
    _TO_OURS[cls], _TO_TORCHS[ours] = ours, cls


def _reduce_ex(module: torch.nn.Module, protocol: Any) -> Any:
    """For pickle and copy, which would look for the class under the name that it shares with the user's."""
    ours = next(cls for cls in type(module).__mro__ if cls in _TO_TORCHS)
    cls = _TO_TORCHS[ours]
    reduced: Any = cls.__reduce_ex__(module, protocol)
    if type(module) is not ours or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return reduced  # a class made from ours, as parametrizations do, answers for itself
    return _new, (cls,), *reduced[2:]


def _new(cls: Class) -> torch.nn.Module:
    if _is_foreign(cls):
        _add_subclass(cls)
    ours = _TO_OURS[cls]
    return ours.__new__(ours)


def _parametrized(cls: Class, base: Class) -> Class:
    """The class that torch made for this one module when it was parametrized, on another base."""
    namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (base,), namespace)
