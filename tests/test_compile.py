"""torch.compile and compiled autograd see the operators whole, with sizes that may change and strides as they will be.

torch.export is in test_export.py.
"""

from itertools import product

import pytest
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from cases import Case, make_operands
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import conv1d_ext

ops = torch.ops.conv1d_ext
CASE = Case(2, 4, 20, 6, 3, stride=2, padding=(2, 1), groups=2, padding_mode="reflect")
LAYOUTS = {"NCL": lambda t: t, "NLC": lambda t: t.mT.contiguous().mT}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


class Net(torch.nn.Module):
    def __init__(self, layout="NCL", dtype=torch.float32, activation=torch.tanh):
        super().__init__()
        _, weight, bias, _ = make_operands(CASE, dtype)
        self.activation = activation
        self.weight = torch.nn.Parameter(LAYOUTS[layout](weight))
        self.bias = torch.nn.Parameter(bias)

    def forward(self, input):
        return self.activation(ops.conv1d(input, self.weight, self.bias, **CASE.geometry))


def inputs(*lengths: int, dtype=torch.float32) -> list[torch.Tensor]:
    return [torch.randn(CASE.batch, CASE.in_channels, length, dtype=dtype) for length in lengths]


def train(function, net, input) -> list[torch.Tensor]:
    """The output and all gradients."""
    input = input.clone().requires_grad_()
    output = function(input)
    grads = torch.autograd.grad(output.abs().square().sum(), (input, *net.parameters()))
    return [output, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_graph_gives_the_eager_results(layout, dtype):
    net, (input,) = Net(layout, dtype), inputs(20, dtype=dtype)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(train(compiled, net, input), train(net, net, input))


long = pytest.mark.long  # inductor runs a C++ compiler for these


@pytest.mark.parametrize(
    ("layout", "activation"),
    [
        ("NCL", torch.nn.Identity()),
        pytest.param("NCL", torch.tanh, marks=long),
        pytest.param("NLC", torch.tanh, marks=long),
    ],
    ids=["alone", "fused", "fused NLC"],
)
def test_inductor_gives_the_eager_results(layout, activation):
    net, (input,) = Net(layout, activation=activation), inputs(20)
    compiled = torch.compile(net, backend="inductor", fullgraph=True)
    torch.testing.assert_close(train(compiled, net, input), train(net, net, input))


def test_a_change_of_length_does_not_compile_again():
    net, counter = Net(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    for input in inputs(20, 21, 33, 64, 7):
        torch.testing.assert_close(train(compiled, net, input), train(net, net, input))
    assert counter.frame_count == 1


class Model(nn.Module):
    """Converted layers of several kinds, one with the channels innermost, between operators that are fused."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(4, 8, 4, padding="same"),
            nn.Conv1d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.Conv1d(8, 8, 3, padding=2, dilation=2, padding_mode="circular"),
            nn.Conv1d(8, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        )
        for conv in self.convs:
            conv.weight = nn.Parameter(LAYOUTS["NLC" if conv.padding_mode == "circular" else "NCL"](conv.weight.data))
        conv1d_ext.convert(self).double()

    def forward(self, input):
        for conv in self.convs:
            input = torch.tanh(conv(input)) * 2
        return input


def check_training_at_other_sizes(compiled, model) -> None:
    """The first change of a size makes it dynamic, where it is not already; then nothing compiles again."""
    sizes = [(2, 20), (2, 24), (3, 28), (5, 33), (2, 64), (7, 17), (3, 28)]
    for i, (batch, length) in enumerate(sizes):
        input = torch.randn(batch, 4, length, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=i > 2):
            torch.testing.assert_close(train(compiled, model, input), train(model, model, input))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_sizes_become_dynamic_once():
    model = Model()
    check_training_at_other_sizes(torch.compile(model, backend="aot_eager", fullgraph=True), model)
    assert counters["stats"]["unique_graphs"] == 3


@long
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_inductor_trains_a_converted_model_at_any_size(mode):
    """Inductor's code checks the strides that the fake kernels predicted."""
    model = Model()
    assert torch._inductor.config.size_asserts
    compiled = torch.compile(model, mode=mode, fullgraph=True, dynamic=True)
    check_training_at_other_sizes(compiled, model)
    assert counters["stats"]["unique_graphs"] == 1


def test_transforms_compile():
    net, (input,) = Net(), inputs(20)

    def per_sample_gradients(weight, samples):
        def loss(weight, sample):
            return ops.conv1d(sample[None], weight, **CASE.geometry).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, samples)

    compiled = torch.compile(per_sample_gradients, backend="aot_eager", fullgraph=True)
    weight = net.weight.detach()
    torch.testing.assert_close(compiled(weight, input), per_sample_gradients(weight, input))


def test_compiled_autograd_gives_the_eager_gradients():
    net, samples, counter = Net(), inputs(20, 21, 33), CompileCounterWithBackend("aot_eager")
    with compiled_autograd._enable(torch.compile(backend=counter, fullgraph=True, dynamic=True)):
        results = [train(net, net, input) for input in samples]
    torch.testing.assert_close(results, [train(net, net, input) for input in samples])
    assert counter.frame_count == 1


def test_compiled_autograd_differentiates_gradients():
    """The nodes of the backward operators, and saved operands that went through hooks."""
    operands = make_operands(CASE, requires_grad=True)[:3]

    def second_derivatives(context):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t.float()):
            loss = ops.conv1d(*operands, **CASE.geometry).pow(3).sum()
            grads = torch.autograd.grad(loss, operands, create_graph=True)
        with context:
            return torch.autograd.grad(sum(grad.square().sum() for grad in grads), operands)

    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        second_derivatives(compiled_autograd._enable(compiler)), second_derivatives(torch.enable_grad())
    )


VIEWS = {
    **LAYOUTS,
    "LNC": lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every second position": lambda t: t.repeat_interleave(2, 2)[..., ::2],
    "some channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "some channels of NLC": lambda t: torch.cat([t, t], 1).mT.contiguous().mT[:, : t.shape[1]],
    "expanded items": lambda t: t[:1].expand_as(t),
    "expanded items of NLC": lambda t: t[:1].mT.contiguous().mT.expand_as(t),
    "expanded channels": lambda t: t[:, :1].expand_as(t),
    "expanded positions": lambda t: t[..., :1].expand_as(t),
}
VIEWED = [CASE, Case(2, 4, 9, 4, 1), Case(3, 4, 9, 4, 3, groups=4)]


def strides(tensor: torch.Tensor) -> list[int]:
    """Those that say something."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_fake_kernels_predict_the_strides_for_every_view(dtype):
    mode = FakeTensorMode()
    for case in VIEWED:
        input, weight, _, grad = make_operands(case, dtype)
        views = [[view(operand) for view in VIEWS.values()] for operand in (input, weight, grad)]
        inputs, weights, grads = [[(view, mode.from_tensor(view)) for view in same] for same in views]
        geometry = tuple(case.geometry.values())
        calls = [
            *((ops.conv1d, *pair, None, *geometry) for pair in product(inputs, weights)),
            *((ops.conv1d_backward_input, *pair, case.in_length, *geometry) for pair in product(grads, weights)),
            *((ops.conv1d_backward_weight, *pair, case.kernel_size, *geometry) for pair in product(grads, inputs)),
            *((ops.conv1d_backward_bias, grad) for grad in grads),
        ]
        for op, *args in calls:
            real, fake = ([arg[i] if isinstance(arg, tuple) else arg for arg in args] for i in range(2))
            assert strides(op(*fake)) == strides(op(*real)), (op, case, [strides(t) for t in real[:2]])
