"""conv1d_ext.Conv1d and LazyConv1d against torch's modules."""

import copy
import inspect
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, make_operands
from operators import operators_of

import conv1d_ext

SAME_ON_BOTH_SIDES = [c for c in CASES if c.padding[0] == c.padding[1]]
VARIANTS = [
    {},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False},
    {"stride": (3,), "padding": (2,)},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "dilation": 3, "padding_mode": "reflect"},
    {"padding": 3, "padding_mode": "replicate", "stride": 2},
    {"padding": 2, "padding_mode": "circular", "groups": 4},
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
]


def both(*args, **kwargs) -> tuple[torch.nn.Conv1d, conv1d_ext.Conv1d]:
    """Torch's module and ours, with the same parameters."""
    torchs, ours = torch.nn.Conv1d(*args, **kwargs), conv1d_ext.Conv1d(*args, **kwargs)
    ours.load_state_dict(torchs.state_dict())
    return torchs, ours


@pytest.mark.parametrize("case", SAME_ON_BOTH_SIDES, ids=str)
def test_matches_torch(case):
    torchs, ours = both(
        case.in_channels,
        case.out_channels,
        case.kernel_size,
        case.stride,
        case.padding[0],
        case.dilation,
        case.groups,
        case.bias,
        case.padding_mode,
        dtype=torch.float64,
    )
    operands = make_operands(case, torch.float64)
    results = []
    for module in (torchs, ours):
        input = operands.input.clone().requires_grad_()
        output = module(input)
        output.backward(operands.grad_output)
        results.append([output, input.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("kernel_size", [3, 4])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 20), (4, 20)], ids=str)
def test_variants_match_torch(variant, kernel_size, shape):
    torchs, ours = both(4, 8, kernel_size, **variant)
    input = torch.randn(shape)
    torch.testing.assert_close(ours(input), torchs(input))


def test_has_the_signature_name_and_repr_of_torch():
    assert inspect.signature(conv1d_ext.Conv1d) == inspect.signature(torch.nn.Conv1d)
    for variant in VARIANTS:
        torchs, ours = both(4, 8, 3, **variant)
        assert repr(ours) == repr(torchs)
        assert isinstance(ours, torch.nn.Conv1d)


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=str)
def test_initialises_as_torch(variant):
    states = []
    for cls in (torch.nn.Conv1d, conv1d_ext.Conv1d):
        torch.manual_seed(3)
        states.append(cls(4, 8, 3, **variant).state_dict())
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_overrides_the_forward_pass_alone():
    assert [name for name in vars(conv1d_ext.Conv1d) if not name.startswith("__")] == ["forward", "_conv_forward"]


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_padding_mode_makes_no_padded_copy(padding_mode):
    module = conv1d_ext.Conv1d(4, 8, 3, padding=2, padding_mode=padding_mode)
    assert operators_of(module, torch.randn(2, 4, 20)) == ["conv1d_ext::conv1d"]
    with torch.device("cpu"):
        assert operators_of(module, torch.randn(2, 4, 20)) == ["conv1d_ext::conv1d"]


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_negative_padding_crops_as_in_torch(padding_mode):
    torchs, ours = both(4, 8, 3, padding=-2, padding_mode=padding_mode)
    input = torch.randn(2, 4, 20)
    torch.testing.assert_close(ours(input), torchs(input))
    torch.testing.assert_close(ours(input[0]), torchs(input[0]))


def test_obeys_attributes_that_were_changed_later():
    torchs, ours = both(4, 8, 3)
    input = torch.randn(2, 4, 20)
    for module in (torchs, ours):
        module.padding, module.stride, module.dilation = (4,), (2,), (3,)
    torch.testing.assert_close(ours(input), torchs(input))


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_subclass_with_handlers_sees_torchs_functions(padding, padding_mode):
    class Handler(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    seen: list = []
    module = conv1d_ext.Conv1d(4, 8, 3, padding=padding, padding_mode=padding_mode)
    module(torch.randn(2, 4, 20).as_subclass(Handler))
    assert F.conv1d in seen
    assert (F.pad in seen) == (padding_mode != "zeros")


def test_pickles_and_copies():
    module = conv1d_ext.Conv1d(4, 8, 3, padding="same")
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    input = torch.randn(2, 4, 20)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert type(twin) is conv1d_ext.Conv1d
        torch.testing.assert_close(twin(input), module(input), rtol=0, atol=0)


@pytest.mark.parametrize("padding", [1, "same", "valid"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_jit_script_and_trace_keep_the_operator(padding, padding_mode):
    module = conv1d_ext.Conv1d(4, 8, 4, padding=padding, padding_mode=padding_mode)
    input, longer = torch.randn(2, 4, 20), torch.randn(3, 4, 37)
    scripted, traced = torch.jit.script(module), torch.jit.trace(module, (input,))
    assert "conv1d_ext::conv1d" in str(scripted.inlined_graph)
    assert "conv1d_ext::conv1d" in str(traced.inlined_graph)
    for compiled in (scripted, traced):
        torch.testing.assert_close(compiled(longer), module(longer))
    torch.testing.assert_close(scripted(longer[0]), module(longer[0]))


def test_scripted_module_obeys_attributes_and_crops():
    module = conv1d_ext.Conv1d(4, 8, 3, padding=1)
    module.padding = (3,)
    input = torch.randn(2, 4, 20)
    torch.testing.assert_close(torch.jit.script(module)(input), module(input))
    module = conv1d_ext.Conv1d(4, 8, 3, padding=-1, padding_mode="reflect")
    torch.testing.assert_close(torch.jit.script(module)(input), module(input))


@pytest.mark.parametrize("variant", [*VARIANTS, {"padding": -1, "padding_mode": "reflect"}], ids=str)
def test_dynamo_traces_it_whole(variant):
    module = conv1d_ext.Conv1d(4, 8, 4, **variant)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for input in (torch.randn(2, 4, 20), torch.randn(4, 20)):
        torch.testing.assert_close(compiled(input), module(input))
    for graph in graphs:
        targets = [node.target for node in graph.graph.nodes]
        assert torch.ops.conv1d_ext.conv1d in targets or torch.ops.conv1d_ext.conv1d.default in targets


def test_lazy_module_becomes_ours():
    torch.manual_seed(1)
    lazy = conv1d_ext.LazyConv1d(8, 3, padding=1, padding_mode="reflect")
    input = torch.randn(2, 4, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Lazy modules are a new feature"
        assert repr(lazy) == repr(torch.nn.LazyConv1d(8, 3, padding=1, padding_mode="reflect"))
        output = lazy(input)
    assert type(lazy) is conv1d_ext.Conv1d
    assert lazy.in_channels == 4
    torchs = torch.nn.Conv1d(4, 8, 3, padding=1, padding_mode="reflect")
    torchs.load_state_dict(lazy.state_dict())
    torch.testing.assert_close(output, torchs(input))


def test_subclasses_can_build_on_it():
    class Causal(conv1d_ext.Conv1d):
        def forward(self, input):
            return super().forward(F.pad(input, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))

    module = Causal(4, 8, 3, dilation=2)
    input = torch.randn(2, 4, 20)
    expected = F.conv1d(F.pad(input, (4, 0)), module.weight, module.bias, dilation=2)
    torch.testing.assert_close(module(input), expected)
