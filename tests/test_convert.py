"""convert and revert: what is swapped, what is kept, what is left alone."""

import copy
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operators import operators_of
from torch.nn.utils import parametrizations, parametrize

import conv1d_ext
from conv1d_ext import convert, revert

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
]


@pytest.fixture(autouse=True)
def _double_precision():
    """So that rounding hides no change."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class OwnForward(torch.nn.Conv1d):
    def forward(self, input):
        return 2 * super().forward(input)


class OwnConvForward(torch.nn.Conv1d):
    def _conv_forward(self, input, weight, bias):
        return -super()._conv_forward(input, weight, bias)


class Causal(torch.nn.Conv1d):
    """As in many speech models; the keyword is Voxtral's."""

    def forward(self, input, state=None):
        state = input.new_zeros(*input.shape[:2], self.kernel_size[0] - 1) if state is None else state
        return super().forward(torch.cat([state, input], dim=2))


class LazyCausal(torch.nn.LazyConv1d):
    pass


def hook(module, args, output):
    return output + 1


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = torch.nn.Conv1d(4, 4, 3, padding=1)
        self.body = torch.nn.Sequential(self.shared, torch.nn.ReLU(), torch.nn.Conv1d(4, 4, 4, padding="same"))
        self.own_forward = OwnForward(4, 4, 1)
        self.own_conv_forward = OwnConvForward(4, 4, 1)
        self.flat = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.own_conv_forward(self.own_forward(self.body(self.shared(x))))


INPUT = torch.randn(2, 4, 20, dtype=torch.float64)


def assert_unchanged(module, change, input=INPUT):
    """`change` keeps the output, the gradients and the identity of the parameters."""

    def results():
        module.zero_grad()
        output = module(input)
        output.sum().backward()
        return [output.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]

    before, parameters = results(), dict(module.named_parameters())
    assert change(module) is module
    assert {name: id(p) for name, p in module.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    torch.testing.assert_close(results(), before)


def test_swaps_every_conv1d_in_place():
    net = Net()
    assert_unchanged(net, convert)
    assert type(net.shared) is type(net.body[2]) is conv1d_ext.Conv1d
    assert net.shared is net.body[0]
    assert_unchanged(net, revert)
    assert type(net.shared) is type(net.body[2]) is torch.nn.Conv1d


def test_swaps_the_module_itself():
    module = torch.nn.Conv1d(4, 4, 3)
    assert_unchanged(module, convert)
    assert type(module) is conv1d_ext.Conv1d
    assert_unchanged(module, revert)
    assert type(module) is torch.nn.Conv1d


SUBCLASSES = [OwnForward, OwnConvForward, Causal]


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_serves_subclasses_below_their_own_methods(cls):
    module = cls(4, 4, 3)
    assert_unchanged(module, convert)
    assert isinstance(module, conv1d_ext.Conv1d)
    assert isinstance(module, cls)
    assert repr(type(module)) == repr(cls)
    assert operators_of(module, INPUT).count("conv1d_ext::conv1d") == 1
    assert type(convert(cls(4, 4, 3))) is type(module)
    assert_unchanged(module, revert)
    assert type(module) is cls


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_converted_subclass_pickles_and_copies(cls):
    module = convert(cls(4, 4, 3))
    module.register_forward_hook(hook)
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        torch.testing.assert_close(twin(INPUT), module(INPUT), rtol=0, atol=0)


def test_pickled_subclass_is_loaded_by_another_process():
    pickled = pickle.dumps(convert(torch.nn.Sequential(OwnForward(4, 4, 1), Causal(4, 4, 3))))
    code = f"import pickle, conv1d_ext; print([type(m).__mro__[:3] for m in pickle.loads({pickled!r})])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    expected = [(cls, cls, conv1d_ext.Conv1d) for cls in (OwnForward, Causal)]
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_converted_subclass_compiles_whole(cls):
    module = convert(cls(4, 4, 3))
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), module(INPUT), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [torch.ao.nn.qat.Conv1d, type("Ours", (conv1d_ext.Conv1d,), {}), LazyCausal])
def test_leaves_alone_what_is_known_by_its_class(cls):
    """Quantization looks its classes up; subclasses of this package's are not torch's to get back."""
    qat = {"qconfig": torch.ao.quantization.get_default_qat_qconfig("x86")} if "torch" in cls.__module__ else {}
    module = cls(4, 3) if issubclass(cls, torch.nn.LazyConv1d) else cls(4, 4, 3, **qat)
    assert type(convert(module)) is cls
    assert type(revert(module)) is cls


def test_says_what_it_swapped_and_what_it_left(caplog):
    reports: list[str] = []
    net = Net()
    net.quantized = torch.ao.nn.qat.Conv1d(4, 4, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig("x86"))
    convert(net, report=reports.append)
    (report,) = reports
    assert "4 swapped, 1 left" in report
    for line in ("swapped shared: Conv1d", "swapped own_forward: OwnForward", "left quantized: Conv1d"):
        assert line in report
    with caplog.at_level(logging.INFO, logger="conv1d_ext"):
        convert(revert(net))
    assert caplog.text.count("4 swapped") == 2


def test_twice_changes_nothing():
    net = convert(convert(Net()))
    assert type(net.shared) is conv1d_ext.Conv1d
    assert type(revert(revert(net)).shared) is torch.nn.Conv1d


def test_keeps_state_hooks_flags_and_dtype():
    net = Net().float().eval()
    net.shared.weight.requires_grad_(False)
    net.shared.note = "kept"
    calls: list = []
    net.shared.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    net.shared.register_forward_hook(lambda module, args, output: output + 1)
    state = copy.deepcopy(net.state_dict())
    before = net(INPUT.float())
    convert(net)
    torch.testing.assert_close(net(INPUT.float()), before)
    assert calls == ["pre"] * 4
    assert not net.shared.training
    assert not net.shared.weight.requires_grad
    assert net.shared.note == "kept"
    torch.testing.assert_close(dict(net.state_dict()), dict(state), rtol=0, atol=0)


def test_optimizer_keeps_training_the_parameters():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    convert(net)(INPUT).sum().backward()
    before = net.shared.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net.shared.weight, before)


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old_weight_norm": torch.nn.utils.weight_norm,
    "old_spectral_norm": torch.nn.utils.spectral_norm,
    "two_parametrizations": lambda m: parametrizations.weight_norm(parametrizations.weight_norm(m), name="bias"),
}


@pytest.mark.parametrize("norm", NORMS)
def test_keeps_parametrizations(norm):
    module = NORMS[norm](torch.nn.Conv1d(4, 6, 3, padding=1)).eval()
    model = torch.nn.Sequential(module)
    keys = list(model.state_dict())
    assert_unchanged(model, convert)
    assert isinstance(module, conv1d_ext.Conv1d)
    assert list(model.state_dict()) == keys
    assert parametrize.type_before_parametrizations(module) is conv1d_ext.Conv1d
    assert_unchanged(model, revert)
    assert not isinstance(module, conv1d_ext.Conv1d)
    assert parametrize.type_before_parametrizations(module) is torch.nn.Conv1d


def test_copy_of_a_parametrized_module_keeps_its_side():
    module = parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3))
    twin = copy.deepcopy(module)
    convert(module)
    assert not isinstance(twin, conv1d_ext.Conv1d)
    twin = copy.deepcopy(module)
    revert(module)
    assert isinstance(twin, conv1d_ext.Conv1d)
    torch.testing.assert_close(twin(INPUT), module(INPUT))


def test_parametrizations_can_be_removed_afterwards():
    module = convert(parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3)))
    before = module(INPUT)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is conv1d_ext.Conv1d
    torch.testing.assert_close(module(INPUT), before)


def test_parametrized_subclass_is_served_too():
    module = parametrizations.weight_norm(OwnForward(4, 4, 3))
    assert_unchanged(module, convert)
    assert isinstance(module, conv1d_ext.Conv1d)
    torch.testing.assert_close(copy.deepcopy(module)(INPUT), module(INPUT), rtol=0, atol=0)
    assert_unchanged(module, revert)
    assert not isinstance(module, conv1d_ext.Conv1d)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is OwnForward


def test_parametrized_subclass_refuses_pickling_as_torchs():
    module = parametrizations.weight_norm(convert(OwnForward(4, 4, 3)))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(module)
    torch.testing.assert_close(copy.deepcopy(module)(INPUT), module(INPUT), rtol=0, atol=0)


def test_swaps_lazy_modules():
    model = convert(torch.nn.Sequential(torch.nn.LazyConv1d(6, 3)))
    assert type(model[0]) is conv1d_ext.LazyConv1d
    assert type(revert(model)[0]) is torch.nn.LazyConv1d
    convert(model)(INPUT)
    assert type(model[0]) is conv1d_ext.Conv1d


def test_leaves_scripted_modules_alone():
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3)))
    before = scripted(INPUT)
    assert convert(scripted) is scripted
    torch.testing.assert_close(scripted(INPUT), before)


def test_rejects_what_is_no_module():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, but got list"):
        convert([torch.nn.Conv1d(4, 4, 3)])
