"""Which operators a call runs: the way to see who computes."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def operators_of(function: Callable, *args, **kwargs) -> list[str]:
    """The names of the operators that reach the backends, in order."""
    with _Record() as record:
        function(*args, **kwargs)
    return record.names
