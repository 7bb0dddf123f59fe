"""Differential fuzzing: random calls of conv1d and their gradients, in random memory layouts, against torch in float64.

`python tests/fuzz.py 100000 --seed 7` checks so many different examples and prints which plans they reached. Seeds are
counted up from that one, ten examples each, so a run that stopped goes on from the last seed printed. A failure is
shrunk and printed as an `Example(...)`: it belongs into fuzz_corpus.py, which every run of the tests replays
(test_fuzz.py) before some examples of its own. FUZZING.md records what was run.

Half of the examples consist of small integers: sums of them are exact in any order and have to agree to the bit. The
others are standard normal numbers and have to agree within the tolerance of reference.py.
"""

import argparse
import dataclasses
import itertools
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from reference import assert_op_matches
from torch import Tensor

from conv1d_ext import _C
from conv1d_ext.backends import cpu
from conv1d_ext.functional import conv1d, conv1d_padded

DTYPES = ["float64", "float32", "bfloat16", "float16", "complex64", "complex128"]
REQUIRES_GRAD = [" ".join(set) for n in (3, 2, 1, 0) for set in itertools.combinations(("input", "weight", "bias"), n)]
MODES = ["zeros", "reflect", "replicate", "circular"]
LARGE_CACHES = (32 << 10, 1 << 20)
CACHES = [LARGE_CACHES, (4 << 10, 32 << 10), (512, 2 << 10)]  # bytes of L1 and L2; small ones make many blocks
OPS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight", "conv1d_backward_bias"]


class Brief:
    """A representation that can be pasted into source code, of what differs from the defaults."""

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:  # hypothesis' printer
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Layout(Brief):
    """Where in a buffer the elements of a tensor lie; those in between are NaN."""

    order: tuple[int, ...] = ()  # the dimensions, the innermost one last; () is as they stand
    steps: tuple[int, ...] = ()  # elements from one to the next in each dimension, by what fits in there; 0: expanded
    windows: bool = False  # the steps are strides: elements overlap
    offset: int = 0
    view: str = ""  # "conj", "neg": the bit of a lazy conjugate or negative

    @property
    def repeats(self) -> bool:
        return self.windows or 0 in self.steps

    def strides(self, shape: tuple[int, ...]) -> list[int]:
        rank = len(shape)
        steps = self.steps if len(self.steps) == rank else (1,) * rank
        if self.windows:
            return list(steps)
        strides, extent = [0] * rank, 1
        for dim in reversed(self.order if len(self.order) == rank else range(rank)):
            strides[dim] = steps[dim] * extent
            extent = max(extent, strides[dim] * shape[dim])
        return strides


@dataclass(frozen=True, repr=False)
class Example(Brief):
    input: tuple[int, ...]  # shape
    weight: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    stride: int = 1
    padding: int | str | tuple[int, int] = 0  # a pair is an argument of conv1d_padded
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"
    dtype: str = "float64"
    integers: bool = False
    requires_grad: str = "input weight bias"
    input_layout: Layout = Layout()
    weight_layout: Layout = Layout()
    bias_layout: Layout = Layout()
    grad_output_layout: Layout = Layout()
    isa: str = "portable"
    caches: tuple[int, int] = LARGE_CACHES

    @property
    def case(self) -> Case:
        """The geometry of a valid example."""
        batch, in_channels, in_length = (1, *self.input)[-3:]
        out_channels, _, kernel_size = self.weight
        left, right = self.padding if isinstance(self.padding, tuple) else (self.padding, self.padding)
        if isinstance(self.padding, str):
            total = self.dilation * (kernel_size - 1) * (self.padding == "same")
            left, right = total // 2, total - total // 2
        # Cropping is done before the convolution.
        in_length, left, right = in_length + min(left, 0) + min(right, 0), max(left, 0), max(right, 0)
        mode = self.padding_mode if isinstance(self.padding, tuple) and (left or right) else "zeros"
        geometry = self.stride, (left, right), self.dilation, self.groups, mode, self.bias is not None
        return Case(batch, in_channels, in_length, out_channels, kernel_size, *geometry)

    def tensor(self, role: str, shape: tuple[int, ...]) -> Tensor:
        """The operand of that name, the same one each time."""
        layout, dtype = getattr(self, f"{role}_layout"), getattr(torch, self.dtype)
        strides = layout.strides(shape)
        last = sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True)) if 0 not in shape else 0
        size = layout.offset + last + 3
        generator = torch.Generator().manual_seed(zlib.crc32(f"{role} {self}".encode()))
        exact = torch.complex128 if dtype.is_complex else torch.float64
        buffer = torch.randn(size, generator=generator, dtype=exact)
        if self.integers:  # of sums up to 2^24, which float holds
            parts = torch.view_as_real(buffer) if dtype.is_complex else buffer
            most = 3 if np.prod(shape) < 1 << 19 else 1
            parts.copy_((parts.abs() * 1.5).ceil().clamp(1, most) * parts.sign())
        buffer = buffer.to(dtype)
        gaps = np.ones(size, bool)
        np.lib.stride_tricks.as_strided(gaps[layout.offset :], shape, strides)[...] = False
        buffer[torch.from_numpy(gaps)] = torch.nan
        tensor = buffer.as_strided(shape, strides, layout.offset)
        if layout.view == "conj" and dtype.is_complex:
            tensor = tensor.conj()
        if layout.view == "neg":
            tensor = torch._neg_view(tensor)
        return tensor.detach().requires_grad_(role in self.requires_grad.split())

    def operands(self) -> list[Tensor | None]:
        bias = None if self.bias is None else self.tensor("bias", self.bias)
        return [self.tensor("input", self.input), self.tensor("weight", self.weight), bias]


def ours(example: Example, *operands: Tensor | None) -> Tensor:
    if isinstance(example.padding, tuple):
        geometry = example.stride, example.padding, example.dilation, example.groups, example.padding_mode
        return conv1d_padded(*operands, *geometry)
    return conv1d(*operands, example.stride, example.padding, example.dilation, example.groups)


def torchs(example: Example, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = example.padding
    if isinstance(padding, tuple):
        mode = "constant" if example.padding_mode == "zeros" else example.padding_mode
        input, padding = F.pad(input, padding, mode), 0
    return F.conv1d(input, weight, bias, example.stride, padding, example.dilation, example.groups)


def results(function: Callable, example: Example, operands: list[Tensor | None]) -> dict[str, Tensor]:
    """The output and the gradients that are asked for, by the operators that compute them."""
    output = function(example, *operands)
    results = {OPS[0]: output}
    wanted = {op: t for op, t in zip(OPS[1:], operands, strict=True) if t is not None and t.requires_grad}
    assert output.requires_grad == bool(wanted), f"requires_grad={output.requires_grad}"
    if wanted:
        grad_output = example.tensor("grad_output", tuple(output.shape)).detach()
        before = stored(grad_output).clone()
        grads = torch.autograd.grad(output, wanted.values(), grad_output.to(output.dtype))
        assert torch.equal(stored(grad_output), before), "grad_output was written to"
        results |= zip(wanted, grads, strict=True)
    return results


def attempt(function: Callable, example: Example, operands: list[Tensor | None]) -> dict[str, Tensor] | Exception:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "padding='same' with even kernel lengths"
            return results(function, example, operands)
    except AssertionError:
        raise
    except Exception as error:
        return error


def exactly(operand: Tensor | None) -> Tensor | None:
    if operand is None:
        return None
    plain = operand.detach().resolve_conj().resolve_neg()
    exact = plain.to(torch.complex128 if plain.is_complex() else torch.float64, copy=True).contiguous()
    return exact.requires_grad_(operand.requires_grad)


def stored(operand: Tensor) -> Tensor:
    """All bytes of the buffer that the operand lies in."""
    return torch.empty(0, dtype=torch.uint8).set_(operand.untyped_storage())


def telling_strides(tensor: Tensor) -> list[int]:
    """Without those of dimensions in which there is nothing to step to."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


@contextmanager
def setting(example: Example) -> Iterator[None]:
    before = _C.isa(), _C.cache_sizes()
    _C.set_isa(example.isa if example.isa in _C.supported_isas() else "portable")
    _C.set_cache_sizes(*example.caches)
    try:
        with cpu.flags(allow_fft=False, allow_toom_cook=False, allow_amx=False):  # not always exact on integers
            yield
    finally:
        _C.set_isa(before[0])
        _C.set_cache_sizes(*before[1])


def check(example: Example) -> bool:
    """Raises AssertionError where torch's results are others; says whether there are any, or torch refuses the call."""
    operands = example.operands()
    before = [None if operand is None else stored(operand).clone() for operand in operands]
    with setting(example):
        actual = attempt(ours, example, operands)
    for operand, bytes_before in zip(operands, before, strict=True):
        assert operand is None or torch.equal(stored(operand), bytes_before), "an operand was written to"

    expected = attempt(torchs, example, [exactly(operand) for operand in operands])
    if isinstance(actual, Exception) or isinstance(expected, Exception):
        assert type(actual) is type(expected), f"{actual!r}\ninstead of {expected!r}"
        return False
    case = example.case
    assert actual.keys() == expected.keys()
    for op, result in actual.items():
        assert result.dtype == operands[0].dtype
        assert_op_matches(op, case, result, expected[op], exact=example.integers)
    # torch's strides are an accident where it takes for channels-last what has one channel, position or weight, or
    # weights of which several are one.
    odd_channel = case.in_channels == 1 and (example.input_layout.order or example.input_layout.windows)
    one = odd_channel or case.in_length == 1 or operands[1][0].numel() == 1
    if case.batch > 0 and not one and not example.weight_layout.repeats:
        # In torch 2.13 some convolutions of bfloat16 with channels-last weights and groups end in a segmentation fault.
        stand_in = dataclasses.replace(example, dtype="float32") if example.dtype == "bfloat16" else example
        for op, result in attempt(torchs, stand_in, stand_in.operands()).items():
            if op != "conv1d_backward_input" or example.padding_mode == "zeros":  # else the padding's
                strides, expected_strides = telling_strides(actual[op]), telling_strides(result)
                assert strides == expected_strides, f"{op}: strides {strides} instead of {expected_strides}"
    return True


# What is drawn: the sizes, then what has to fit to them. Plain functions where a strategy would be: they are faster.


def up_to(draw: st.DrawFn, limit: int) -> int:
    """From 1 on, of every order of magnitude."""
    return draw(st.integers(1, min(limit, 1 << draw(st.integers(0, limit.bit_length())))))


STEPS = {"permuted": (1,), "steps": (1, 2), "expanded": (0, 1), "windows": (0, 1, 2, 3)}


def draw_layout(draw: st.DrawFn, rank: int, dtype: str, integers: bool) -> Layout:
    kinds = ["contiguous", "contiguous", "permuted", "steps"]
    if integers:  # repeated numbers don't make the sums that the tolerance is derived for
        kinds += ["expanded", "windows"]
    kind = draw(st.sampled_from(kinds))
    offset = draw(st.integers(0, 5))
    view = draw(st.sampled_from(["", "", "neg", "conj"] if dtype.startswith("complex") else ["", "", "", "neg"]))
    if kind == "contiguous":
        return Layout(offset=offset, view=view)
    order = draw(st.sampled_from(list(itertools.permutations(range(rank))))) if kind != "windows" else ()
    steps = draw(st.sampled_from(list(itertools.product(STEPS[kind], repeat=rank))))
    return Layout(order, steps, kind == "windows", offset, view)


MOST = {"batch": 64, "groups": 64, "out": 600, "in": 2000, "kernel": 600, "length": 20000}
MOST_WORK, MOST_ELEMENTS = 1 << 22, 1 << 18
ORDERS = list(itertools.permutations(MOST))


def draw_valid(draw: st.DrawFn) -> Example:
    # The sizes whose product is the work: each in turn takes a part of what is left.
    work = up_to(draw, MOST_WORK)
    size = {}
    for name in draw(st.sampled_from(ORDERS)):
        size[name] = up_to(draw, min(MOST[name], work))
        work //= size[name]
    batch, groups, kernel_size = size["batch"], size["groups"], size["kernel"]
    room = max(1, MOST_ELEMENTS // (batch * groups * max(size["in"], size["out"])))  # for positions
    out_length = min(size["length"], room)
    form = draw(st.sampled_from(["pair", "pair", "pair", "int", "same", "valid"]))
    stride = 1 if form == "same" else up_to(draw, min(600, max(1, room // out_length)))
    dilation = up_to(draw, max(1, room // kernel_size))

    # Of the padded input, some positions may be left over, and some are padding: as many as the mode allows.
    padded = (out_length - 1) * stride + dilation * (kernel_size - 1) + 1 + draw(st.integers(0, stride - 1))
    padding_mode, left, right = "zeros", 0, 0
    if form == "pair":
        padding_mode = draw(st.sampled_from(MODES))
        # reflect: less than the input that remains; circular: no more than that; else one position remains.
        spare = {"reflect": padded - 1, "circular": padded}.get(padding_mode)
        left = up_to(draw, padded if spare is None else spare // 2 + 1) - 1
        most = padded - 1 - left
        if spare is not None:
            most = min(most, spare - 2 * left, (spare - left) // 2)
        right = up_to(draw, most + 1) - 1
        if draw(st.booleans()):
            left, right = right, left
    elif form == "int":
        left = right = up_to(draw, (padded + 1) // 2) - 1
    in_length = out_length if form == "same" else padded - left - right

    input = (batch, groups * size["in"], in_length)
    if batch == 1 and draw(st.booleans()):
        input = input[1:]
    weight = (groups * size["out"], size["in"], kernel_size)
    bias = weight[:1] if draw(st.booleans()) else None
    dtype, integers = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    return Example(
        input,
        weight,
        bias,
        stride,
        {"pair": (left, right), "int": left}.get(form, form),
        dilation,
        groups,
        padding_mode,
        dtype,
        integers,
        draw(st.sampled_from(REQUIRES_GRAD)),
        draw_layout(draw, len(input), dtype, integers),
        draw_layout(draw, 3, dtype, integers),
        draw_layout(draw, 1, dtype, integers) if bias else Layout(),
        draw_layout(draw, len(input), dtype, integers),
        draw(st.sampled_from(_C.supported_isas())),
        draw(st.sampled_from(CACHES)),
    )


def resized(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    dim %= len(shape)
    return (*shape[:dim], size, *shape[dim + 1 :])


def draw_twist(draw: st.DrawFn, example: Example) -> dict[str, object]:
    """Values of fields that may make a valid example one that torch refuses."""
    x, w = example.input, example.weight
    few, length = draw(st.integers(-3, 3)), draw(st.integers(0, x[-1]))
    if isinstance(example.padding, tuple) and example.padding_mode == "zeros":  # torch pads without asking for a length
        length = max(length, 1)
    cropping = draw(st.sampled_from(["reflect", "replicate"]))  # circular, torch may read what it has not written
    twists: list[dict[str, object]] = [
        {"input": resized(x, 0, 0)},  # an empty batch, or no channels
        {"input": resized(x, -1, length)},
        {"input": resized(resized(x, 0, 0), -1, 0)},
        {"input": resized(x, -2, 0), "weight": resized(w, 1, 0)},
        {"input": resized(x, -2, max(0, x[-2] + few))},
        {"input": x[-1:]},
        {"input": (1,) * (4 - len(x)) + x},
        {"weight": w[:2]},
        {"weight": (*w, 1)},
        {"weight": resized(w, 0, abs(few))},
        {"weight": resized(w, 1, abs(few))},
        {"weight": resized(w, 2, abs(few))},
        {"bias": (abs(few),)},
        {"bias": (w[0], 1)},
        {"stride": few},
        {"dilation": few},
        {"dilation": 1 + length},
        {"groups": few},
        {"padding": few},
        {"padding": "full"},
        {"padding": (few, draw(st.integers(-3, 3))), "padding_mode": cropping},
        {"padding": (-length, few), "padding_mode": cropping},
        {"padding": (max(0, few), max(0, x[-1] + few)), "padding_mode": draw(st.sampled_from(MODES))},
    ]
    return draw(st.sampled_from(twists))


@st.composite
def examples(draw: st.DrawFn) -> Example:
    example = draw_valid(draw)
    return dataclasses.replace(example, **draw_twist(draw, example)) if draw(st.integers(0, 7)) == 7 else example


def plans(example: Example) -> set[str]:
    """What the plans of a valid example come to, as those of contiguous operands do: algorithms and splits."""
    case = example.case
    dtype = {"complex64": "float32", "complex128": "float64"}.get(example.dtype, example.dtype)
    sizes = dict(zip(("batch", "in_channels", "in_length"), case.input_shape, strict=True))
    sizes |= {"out_channels": case.out_channels, "kernel_size": case.kernel_size}
    reached = set()
    if min(sizes.values()) == 0 or (isinstance(example.padding, tuple) and min(example.padding) < 0):
        return reached  # nothing to compute, or torch pads
    for op in OPS[:3]:
        with setting(example):
            plan = _C.plan(op, dtype, **sizes, **case.geometry)
        channels = (case.out_channels if op == "conv1d_backward_input" else case.in_channels) // case.groups
        positions = -(-case.in_length // case.stride) if op == "conv1d_backward_input" else case.out_length
        algorithm = f"{op}, {plan['algorithm']}"
        split = {
            "": True,
            ", several items": plan["batch_block"] > 1,
            ", blocks of positions": plan["position_block"] < positions,
            ", blocks of channels": plan["channel_block"] * 2 < channels,  # may count pairs
            ", blocks of taps": plan["tap_block"] * case.stride < case.kernel_size,
            ", parts of the sum": plan["reduction_chunks"] > 1,
            ", phases": plan["panel_phases"] > 1,
            ", all weights packed": plan["pack_weight"] == "all",
            ", tiles of weights packed": plan["pack_weight"] == "tiles",
        }
        reached |= {algorithm + name for name, holds in split.items() if holds}
    return reached


def run(count: int, first_seed: int = 0) -> Iterator[Counter[str]]:
    """Checks at least so many different examples and yields, again and again, how many got where."""
    seen: set[Example] = set()
    reached: Counter[str] = Counter()

    def check_once(example: Example) -> None:
        if example not in seen:
            reached.update(["examples", *(plans(example) if check(example) else ["refused"])])
            seen.add(example)

    for seed_ in itertools.count(first_seed):
        if len(seen) >= count:
            return
        seed(seed_)(FRESH(given(examples())(check_once)))()
        yield reached


# After ten examples hypothesis varies each that it has drawn five times, mostly in what matters little.
FRESH = settings(
    max_examples=10,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    for i, reached in enumerate(run(arguments.count, arguments.seed)):
        if i % 100 == 0:
            print(f"seed {arguments.seed + i}: {reached['examples']} in {time.monotonic() - start:.0f} s", flush=True)
    print(f"{reached['examples']} examples in {time.monotonic() - start:.0f} s, of which")
    for name, count in sorted(reached.items()):
        print(f"{count:7} {100 * count / reached['examples']:6.2f} %  {name}")


if __name__ == "__main__":
    main()
