"""torch.fx traces converted models; what looks for torch.nn.Conv1d by its exact type is one call away, `revert`."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

import conv1d_ext

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

INPUT, LONGER = (torch.randn(2, 4, length, generator=torch.Generator().manual_seed(0)) for length in (30, 47))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.body = nn.Sequential(
            nn.Conv1d(8, 8, 4, padding="same", padding_mode="reflect", bias=False), nn.BatchNorm1d(8), nn.ReLU()
        )

    def forward(self, input):
        return self.body(torch.relu(self.bn(self.conv(input))))


@pytest.fixture
def stock() -> Net:
    """In evaluation, with statistics that are not those of the start."""
    model = Net()
    for _ in range(3):
        model(3 * torch.randn(8, 4, 30) + 1)
    return model.eval()


@pytest.fixture
def model(stock) -> Net:
    return conv1d_ext.convert(copy.deepcopy(stock))


def convolutions(graph: torch.fx.Graph) -> list:
    """Their targets: functions, or the names of modules."""
    return [node.target for node in graph.nodes if "conv" in node.name and node.op.startswith("call")]


def test_symbolic_trace_records_the_functions(model):
    traced = torch.fx.symbolic_trace(model)
    assert convolutions(traced.graph) == [conv1d_ext.functional.conv1d, conv1d_ext.functional.conv1d_padded]
    for graph_module in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(graph_module(LONGER), model(LONGER))
    traced(INPUT).sum().backward()
    assert model.conv.weight.grad is not None


def test_a_tracer_can_keep_the_modules_whole(model):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, nn.Conv1d) or super().is_leaf_module(module, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"][:2] == ["conv", "bn"]
    torch.testing.assert_close(traced(LONGER), model(LONGER))


@pytest.mark.parametrize("bias", [True, False])
def test_fuse_conv_bn_eval_folds_the_norm(stock, bias):
    conv, bn = nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular", bias=bias).eval(), stock.bn
    fused = fuse_conv_bn_eval(conv1d_ext.convert(copy.deepcopy(conv)), bn)
    assert type(fused) is conv1d_ext.Conv1d
    torch.testing.assert_close(fused(INPUT), bn(conv(INPUT)))


def test_fx_fusion_folds_the_norms_of_a_reverted_model(model, stock):
    fused = conv1d_ext.convert(fuse(conv1d_ext.revert(model)))
    modules = [type(module) for module in fused.modules()]
    assert modules.count(conv1d_ext.Conv1d) == 2
    assert nn.BatchNorm1d not in modules
    torch.testing.assert_close(fused(LONGER), stock(LONGER))


def test_fx_fusion_without_revert_changes_nothing(model, stock):
    unfused = fuse(model)
    assert [type(module) for module in unfused.modules()].count(nn.BatchNorm1d) == 2
    torch.testing.assert_close(unfused(LONGER), stock(LONGER))
