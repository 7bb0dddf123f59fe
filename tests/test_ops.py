"""What torch knows of the operators without running them: fake kernels and FLOP counts; and its own check of them."""

from itertools import product

import pytest
import torch
from cases import CASES, Case, make_operands
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import conv1d_ext._ops  # noqa: F401  defines the operators

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.conv1d_ext
CASE = Case(2, 4, 9, 6, 3, stride=2, padding=(2, 1), dilation=2, groups=2, padding_mode="replicate")
LAYOUTS = {"NCL": lambda t: t, "NLC": lambda t: t.mT.contiguous().mT if t.dim() == 3 else t}


def calls(case: Case, dtype=torch.float32, layout="NCL", requires_grad=False) -> list:
    """Each operator with arguments for it."""
    operands = [t if t is None else LAYOUTS[layout](t) for t in make_operands(case, dtype)]
    input, weight, bias, grad_output = [t if t is None else t.requires_grad_(requires_grad) for t in operands]
    geometry = tuple(case.geometry.values())
    return [
        (ops.conv1d.default, (input, weight, bias, *geometry)),
        (ops.conv1d_backward_input.default, (grad_output, weight, case.in_length, *geometry)),
        (ops.conv1d_backward_weight.default, (grad_output, input, case.kernel_size, *geometry)),
        (ops.conv1d_backward_bias.default, (grad_output,)),
    ]


def metadata(tensor: torch.Tensor) -> tuple:
    """What a fake kernel has to predict; strides only where they say something."""
    strides = [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]
    return tensor.shape, strides, tensor.dtype, tensor.device


@pytest.mark.parametrize(
    ("layout", "dtype"), [("NCL", torch.float32), ("NLC", torch.float32), ("NLC", torch.complex64)], ids=str
)
def test_opcheck_finds_nothing(layout, dtype):
    for op, args in calls(CASE, dtype, layout, requires_grad=True):
        opcheck(op, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_kernels_predict_what_the_kernels_return(layout, dtype):
    mode = FakeTensorMode()
    for case in CASES:
        for op, args in calls(case, dtype, layout):
            fake = op(*(mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args))
            assert metadata(fake) == metadata(op(*args)), (op, case)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.complex32], ids=str)
def test_fake_kernels_predict_what_torch_returns_for_dtypes_that_go_to_it(dtype, layout):
    for case in (Case(2, 4, 9, 6, 3), Case(2, 4, 9, 6, 4, padding=(1, 2), groups=2)):
        operands = [LAYOUTS[layout](t.to(torch.float16).to(dtype)) for t in make_operands(case)[:3]]
        real = ops.conv1d(*operands, **case.geometry)
        fake = ops.conv1d(*map(FakeTensorMode().from_tensor, operands), **case.geometry)
        assert metadata(fake) == metadata(real)


BAD_CALLS = {
    "channels": lambda x, w, b: (x[:, 1:], w, b),
    "dimensions": lambda x, w, b: (x[0], w, b),
    "dtype": lambda x, w, b: (x.double(), w, b),
    "bias": lambda x, w, b: (x, w, b[1:]),
    "short input": lambda x, w, b: (x[..., :1], w, b, 1),
    "stride": lambda x, w, b: (x, w, b, 0),
    "padding": lambda x, w, b: (x, w, b, 1, -1, -1),
    "dilation": lambda x, w, b: (x, w, b, 1, 0, 0, 0),
    "groups": lambda x, w, b: (x, w, b, 1, 0, 0, 1, 0),
    "divisibility": lambda x, w, b: (x, w[:5], b[:5], 1, 0, 0, 1, 2),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_fake_kernels_reject_what_the_kernels_reject(bad):
    operands = make_operands(Case(2, 4, 9, 6, 3))[:3]
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError):
            ops.conv1d(*BAD_CALLS[bad](*(t.to(device) for t in operands)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("chosen", [c for c in product([False, True], repeat=3) if any(c)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_flop_counts_match_torch(groups, chosen, dtype):
    case = Case(2, 4, 19, 6, 3, stride=2, padding=(1, 1), dilation=2, groups=groups)

    def flops(convolve):
        operands = make_operands(case, dtype)[:3]
        for operand, needs_grad in zip(operands, chosen, strict=True):
            operand.requires_grad_(needs_grad)
        with FlopCounterMode(display=False) as forward:
            output = convolve(*operands, **case.geometry)
        with FlopCounterMode(display=False) as backward:
            output.backward(torch.ones_like(output))
        return forward.get_total_flops(), backward.get_total_flops()

    assert flops(ops.conv1d) == flops(lambda *o, **g: torch.nn.functional.conv1d(*o, 2, 1, 2, groups))
