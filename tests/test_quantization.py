"""Quantisation finds layers by their exact type or operator: `revert` first, and it is that of the stock model."""

import copy

import pytest
import torch
import torch.ao.quantization as quantization
from torch import nn
from torch.ao.quantization import quantize_fx

import conv1d_ext

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="for the engine x86"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()
        self.head = nn.Conv1d(8, 4, 5, stride=2, groups=2)

    def forward(self, input):
        return self.dequant(self.head(self.relu(self.bn(self.conv(self.quant(input))))))


INPUT = torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(0))
FUSED = [["conv", "bn", "relu"]]


def train(model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(INPUT).square().mean().backward()
        optimizer.step()
    model.eval()


def eager(model):
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(quantization.fuse_modules(model, FUSED))
    prepared(INPUT)
    return quantization.convert(prepared)


def eager_aware(model):
    model.train().qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(quantization.fuse_modules_qat(model, FUSED))
    train(prepared)
    return quantization.convert(prepared)


def fx(model, mapping=None):
    prepared = quantize_fx.prepare_fx(model, mapping or quantization.get_default_qconfig_mapping("x86"), (INPUT,))
    prepared(INPUT)
    return quantize_fx.convert_fx(prepared)


def fx_aware(model):
    mapping = quantization.get_default_qat_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_qat_fx(model.train(), mapping, (INPUT,))
    train(prepared)
    return quantize_fx.convert_fx(prepared)


@pytest.fixture
def stock() -> Net:
    model = Net()
    model(INPUT)
    return model.eval()


@pytest.fixture
def model(stock) -> Net:
    return conv1d_ext.convert(copy.deepcopy(stock))


def convolutions(model: nn.Module) -> list[str]:
    return [
        f"{type(m).__module__.split('.modules')[0]}.{type(m).__name__}" for m in model.modules() if hasattr(m, "stride")
    ]


@pytest.mark.parametrize("quantize", [eager, eager_aware, fx, fx_aware], ids=lambda quantize: quantize.__name__)
def test_a_reverted_model_is_quantised_as_the_stock_one(stock, model, quantize):
    expected, ours = quantize(stock), quantize(conv1d_ext.revert(model))
    assert convolutions(ours) == ["torch.ao.nn.intrinsic.quantized.ConvReLU1d", "torch.ao.nn.quantized.Conv1d"]
    torch.testing.assert_close(ours(INPUT), expected(INPUT), rtol=0, atol=0)
    assert convolutions(conv1d_ext.convert(ours)) == convolutions(expected)


def test_layers_that_stay_in_float_can_be_converted_again(stock, model):
    """Here by a qconfig that leaves the head out."""

    def quantize(model):
        mapping = quantization.get_default_qconfig_mapping("x86").set_module_name("head", None)
        return fx(model, mapping)

    expected, ours = quantize(stock), conv1d_ext.convert(quantize(conv1d_ext.revert(model)))
    assert convolutions(ours) == ["torch.ao.nn.intrinsic.quantized.ConvReLU1d", "conv1d_ext.Conv1d"]
    torch.testing.assert_close(ours(INPUT), expected(INPUT))


def test_without_revert_the_eager_mode_refuses_and_fx_leaves_the_layers_in_float(stock, model):
    with pytest.raises(AssertionError, match="did not find fuser method"):
        eager(model)
    ours = fx(model)
    assert convolutions(ours) == []
    assert [node.target for node in ours.graph.nodes].count(conv1d_ext.functional.conv1d) == 2
    torch.testing.assert_close(ours(INPUT), stock(INPUT), rtol=0, atol=0.05)  # the norm is quantised


def test_dynamic_quantisation_works_on_a_converted_model(stock, model):
    linear = nn.Linear(18, 3)
    expected, ours = (quantization.quantize_dynamic(nn.Sequential(body, linear)) for body in (stock, model))
    assert convolutions(ours) == ["conv1d_ext.Conv1d"] * 2
    assert type(ours[1]) is torch.ao.nn.quantized.dynamic.Linear
    torch.testing.assert_close(ours(INPUT), expected(INPUT), rtol=0, atol=1e-5)


@pytest.mark.long
def test_pt2e_quantises_a_reverted_model_as_the_stock_one(stock, model):
    """torch moved this one to torchao."""
    torchao = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")

    def quantize(model):
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = torchao.prepare_pt2e(torch.export.export(model, (INPUT,)).module(), quantizer)
        prepared(INPUT)
        return torchao.convert_pt2e(prepared)

    expected, ours = quantize(stock), quantize(conv1d_ext.revert(model))
    targets = [str(node.target) for node in ours.graph.nodes]
    assert targets.count("aten.conv1d.default") == 2
    assert "quantized_decomposed.quantize_per_tensor.default" in targets
    torch.testing.assert_close(ours(INPUT), expected(INPUT), rtol=0, atol=0)
