"""Converted models leave Python: torch.export, AOTInductor, TorchScript and ONNX, with sizes that may change."""

import io
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import conv1d_ext

VARIANTS = [
    {},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False},
    {"padding": "same"},  # uneven: the kernel is even
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "replicate"},
    {"padding": 2, "padding_mode": "circular", "groups": 4},
]
SHAPES = pytest.mark.parametrize(
    "shape", [(2, 4, 20), pytest.param((4, 20), marks=pytest.mark.long)], ids=["batched", "unbatched"]
)
DYNAMIC_SIZES = {3: {0: Dim("batch", min=1), 2: Dim("length", min=8)}, 2: {1: Dim("length", min=8)}}  # by dimensions

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export"),
]


class Branches(nn.Module):
    """A layer of each kind on the same input, between operators that a compiler works on."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4, 8, 4, **variant) for variant in VARIANTS)

    def forward(self, input):
        return tuple(torch.relu(conv(input + 1)) for conv in self.convs)


@pytest.fixture
def model() -> Branches:
    return conv1d_ext.convert(Branches()).eval()


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@SHAPES
def test_exported_program_keeps_the_operator_and_dynamic_sizes(model, shape, strict):
    exported = torch.export.export(
        model, (torch.randn(shape),), dynamic_shapes=(DYNAMIC_SIZES[len(shape)],), strict=strict
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    other = torch.randn(5, 4, 33) if len(shape) == 3 else torch.randn(4, 33)
    for program in (exported, exported.run_decompositions(), torch.export.load(buffer)):
        assert operators(program.graph).count("conv1d_ext.conv1d.default") == len(VARIANTS)
        torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.long  # a C++ compiler
def test_aot_inductor_package(model, tmp_path):
    exported = torch.export.export(model, (torch.randn(2, 4, 20),), dynamic_shapes=(DYNAMIC_SIZES[3],))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for shape in ((2, 4, 20), (5, 4, 33), (1, 4, 8)):
        input = torch.randn(shape)
        torch.testing.assert_close(tuple(compiled(input)), model(input))


@pytest.mark.parametrize("method", ["script", "trace"])
def test_torchscript_saves_and_freezes(method):
    layers = (nn.Conv1d(4 if i == 0 else 8, 8, 4, **variant) for i, variant in enumerate(VARIANTS))
    model = conv1d_ext.convert(nn.Sequential(*layers)).eval()
    script = torch.jit.script(model) if method == "script" else torch.jit.trace(model, torch.randn(2, 4, 40))
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    frozen = torch.jit.freeze(script)
    longer = torch.randn(3, 4, 57)
    for module in (torch.jit.load(buffer), frozen, torch.jit.optimize_for_inference(frozen)):
        assert str(module.inlined_graph).count("conv1d_ext::conv1d") == len(VARIANTS)
        torch.testing.assert_close(module(longer), model(longer))


def onnx_operators(model_proto: onnx.ModelProto) -> Counter:
    return Counter(f"{node.domain}{node.op_type}" for node in model_proto.graph.node)


def run_onnx(model_proto: onnx.ModelProto, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
    session = onnxruntime.InferenceSession(model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    return tuple(map(torch.from_numpy, outputs))


@SHAPES
def test_onnx_holds_the_operators_that_torchs_layers_give(model, shape):
    def export(model):
        program = torch.onnx.export(
            model, (torch.randn(shape),), dynamo=True, dynamic_shapes=(DYNAMIC_SIZES[len(shape)],), verbose=False
        )
        return program.model_proto

    ours = export(model)
    other = torch.randn(5, 4, 33) if len(shape) == 3 else torch.randn(4, 33)
    torch.testing.assert_close(run_onnx(ours, other), model(other))
    assert onnx_operators(ours)["Conv"] == len(VARIANTS)
    assert onnx_operators(ours) == onnx_operators(export(conv1d_ext.revert(model)))


@pytest.mark.filterwarnings("ignore:The feature will be removed", "ignore:Constant folding")
def test_onnx_by_the_exporter_on_torchscript(model):
    buffer = io.BytesIO()
    axes = {"input": {0: "batch", 2: "length"}}
    torch.onnx.export(model, (torch.randn(2, 4, 20),), buffer, dynamo=False, input_names=["input"], dynamic_axes=axes)
    ours = onnx.load_from_string(buffer.getvalue())
    other = torch.randn(5, 4, 33)
    torch.testing.assert_close(run_onnx(ours, other), model(other))
    assert onnx_operators(ours)["Conv"] == len(VARIANTS)
