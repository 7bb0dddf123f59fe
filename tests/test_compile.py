"""torch.compile, torch.export and compiled autograd see the operators whole, with sizes that may change."""

import pytest
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from cases import Case, make_operands
from torch._dynamo.testing import CompileCounterWithBackend

import conv1d_ext._ops  # noqa: F401  defines the operators

ops = torch.ops.conv1d_ext
CASE = Case(2, 4, 20, 6, 3, stride=2, padding=(2, 1), groups=2, padding_mode="reflect")
LAYOUTS = {"NCL": lambda t: t, "NLC": lambda t: t.mT.contiguous().mT}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


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


def test_export_keeps_the_operator_and_a_dynamic_length():
    net, (input, longer) = Net(), inputs(20, 33)
    exported = torch.export.export(net, (input,), dynamic_shapes=({2: torch.export.Dim("length", min=4)},))
    assert ops.conv1d.default in [node.target for node in exported.run_decompositions().graph.nodes]
    torch.testing.assert_close(exported.module()(longer), net(longer))
