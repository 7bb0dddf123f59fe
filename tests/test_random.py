"""Random small problems in random layouts, forward and gradients, against torch in float64."""

import random
from collections.abc import Iterator

import pytest
import torch
from cases import Case
from reference import torch_conv1d

from conv1d_ext import _C
from conv1d_ext.functional import conv1d, conv1d_padded

CASES_PER_TEST = 100


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _restored_fft_use() -> Iterator[None]:
    before = _C.fft_use()
    yield
    _C.set_fft_use(before)


def draw_case(rng: random.Random) -> Case:
    groups = rng.choice([1, 1, 1, 1, 2, 3, 5])
    kernel_size, dilation = rng.choice([1, 2, 3, 3, 4, 5, 7, 11]), rng.choice([1, 1, 1, 2, 3, 4])
    padding_mode = rng.choice(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])
    in_length = rng.choice([rng.randint(1, 6), rng.randint(1, 40), rng.randint(1, 150)])
    widest = {"zeros": 12, "reflect": in_length - 1, "replicate": 12, "circular": in_length}[padding_mode]
    padding = rng.randint(0, min(widest, 12)), rng.randint(0, min(widest, 12))
    missing = dilation * (kernel_size - 1) + 1 - sum(padding) - in_length
    return Case(
        batch=rng.choice([0, 1, 1, 2, 3, 9]),
        in_channels=groups * rng.choice([1, 1, 2, 3, 8, 17]),
        in_length=in_length + max(missing, 0),
        out_channels=groups * rng.choice([1, 1, 2, 5, 9, 16]),
        kernel_size=kernel_size,
        stride=rng.choice([1, 1, 1, 2, 3, 4, 7]),
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        bias=rng.random() < 0.7,
    )


def draw_tensor(rng: random.Random, *shape: int) -> torch.Tensor:
    """Standard normal numbers in one of the layouts that a model may come up with."""
    layout = rng.choice(["contiguous", "contiguous", "transposed", "steps", "part", "expanded", "overlapping"])
    if layout == "transposed" and len(shape) > 1:
        return torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=torch.float64).transpose(-1, -2)
    if layout == "steps":
        return torch.randn([2 * size for size in shape], dtype=torch.float64)[(slice(1, None, 2),) * len(shape)]
    if layout == "part":
        return torch.randn([size + 3 for size in shape], dtype=torch.float64)[tuple(slice(2, 2 + n) for n in shape)]
    if layout == "expanded":
        dimension = rng.randrange(len(shape))
        return torch.randn(*shape[:dimension], 1, *shape[dimension + 1 :], dtype=torch.float64).expand(shape)
    if layout == "overlapping":  # windows of one long signal
        return torch.randn(max(sum(shape), 1), dtype=torch.float64).as_strided(shape, [1] * len(shape))
    return torch.randn(shape, dtype=torch.float64)


def call(case: Case, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if case.padding_mode == "zeros" and case.padding[0] == case.padding[1]:
        return conv1d(input, weight, bias, case.stride, case.padding[0], case.dilation, case.groups)
    geometry = case.stride, case.padding, case.dilation, case.groups, case.padding_mode
    return conv1d_padded(input, weight, bias, *geometry)


def telling_strides(tensor: torch.Tensor) -> list[int]:
    """Without those of dimensions in which there is nothing to step to."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


@pytest.mark.parametrize("fft_use", ["where faster", "where possible"])
@pytest.mark.parametrize("seed", range(5))
def test_matches_torch(seed, isa, fft_use):
    _C.set_fft_use(fft_use)
    rng = random.Random(f"{seed} {isa} {fft_use}")
    for _ in range(CASES_PER_TEST):
        case = draw_case(rng)
        batch = (case.batch,) if rng.random() < 0.8 else ()
        operands = [draw_tensor(rng, *batch, *case.input_shape[1:]), draw_tensor(rng, *case.weight_shape)]
        operands += [draw_tensor(rng, case.out_channels)] * case.bias
        for operand in operands:
            operand.requires_grad_(rng.random() < 0.8)
        wanted = [operand for operand in operands if operand.requires_grad]
        grad_output = draw_tensor(rng, *batch, *case.output_shape[1:])

        actual = call(case, *operands, *[None] * (not case.bias))
        expected = torch_conv1d(*operands, **case.geometry)
        assert telling_strides(actual) == telling_strides(expected), case
        if wanted:
            actual = [actual, *torch.autograd.grad(actual, wanted, grad_output)]
            expected = [expected, *torch.autograd.grad(expected, wanted, grad_output)]
        torch.testing.assert_close(actual, expected, msg=lambda text, case=case: f"{case}: {text}")
