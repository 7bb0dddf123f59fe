"""What stands on the operators, on a GPU: derivatives, modules, autocast, torch.compile, torch.func, explain."""

import pytest
import torch
from cases import CASES, Case, make_operands
from gpu import DEVICE
from test_autograd import SMALL_CASES
from torch.autograd import gradcheck, gradgradcheck

import conv1d_ext

OPS = torch.ops.conv1d_ext
CASE = Case(2, 4, 9, 6, 3, stride=2, padding=(2, 1), groups=2, padding_mode="reflect")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", SMALL_CASES[::2], ids=str)
def test_derivatives_match_finite_differences(case: Case, dtype: torch.dtype) -> None:
    operands = [t.to(DEVICE).requires_grad_() for t in make_operands(case, dtype)[:3] if t is not None]

    def convolve(*operands: torch.Tensor) -> torch.Tensor:
        return OPS.conv1d(*operands, **case.geometry)

    assert gradcheck(convolve, operands, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(convolve, operands, fast_mode=True)


MODULES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 4, "padding": "same", "dilation": 3},
    {"kernel_size": 5, "stride": 2, "padding": 4, "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": 4, "padding_mode": "replicate", "groups": 4},
    {"kernel_size": 31, "padding": "same", "padding_mode": "circular", "groups": 32},
    {"kernel_size": 1, "bias": False},
]


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("settings", MODULES, ids=str)
def test_modules_and_their_gradients_match_torch(settings: dict, layout: str) -> None:
    """Float64, so that what the two round differently does not show."""
    stock = torch.nn.Conv1d(32, 32, **settings, device=DEVICE, dtype=torch.float64)
    if layout == "NLC":
        stock.weight = torch.nn.Parameter(stock.weight.detach().mT.contiguous().mT)
    ours = conv1d_ext.Conv1d(32, 32, **settings, device=DEVICE, dtype=torch.float64)
    ours.weight, ours.bias = stock.weight, stock.bias
    x = torch.randn(3, 32, 200, device=DEVICE, dtype=torch.float64, requires_grad=True)

    def results(module: torch.nn.Module) -> list[torch.Tensor]:
        output = module(x)
        return [output, *torch.autograd.grad(output.square().sum(), (x, *module.parameters()))]

    for actual, expected in zip(results(ours), results(stock), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_in_the_lower_precision(lower: torch.dtype) -> None:
    layer = conv1d_ext.Conv1d(16, 32, 5, padding=2, bias=False, device=DEVICE)  # torch adds it to what it has rounded
    x = torch.randn(2, 16, 300, device=DEVICE, requires_grad=True)
    with torch.autocast("cuda", dtype=lower):
        output, expected = layer(x), torch.nn.functional.conv1d(x, layer.weight, layer.bias, padding=2)
    assert output.dtype == expected.dtype == lower
    torch.testing.assert_close(output, expected)
    output.float().square().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_training_step_with_a_gradient_scaler() -> None:
    layer = conv1d_ext.Conv1d(8, 8, 3, padding=1, device=DEVICE)
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), torch.amp.GradScaler("cuda")
    x = torch.randn(4, 8, 100, device=DEVICE)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = (layer(x) - x).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_compiled_modules_give_the_eager_results(layout: str, backend: str) -> None:
    torch._dynamo.reset()
    layer = conv1d_ext.Conv1d(16, 16, 3, padding=1, padding_mode="reflect", device=DEVICE)
    if layout == "NLC":
        layer.weight = torch.nn.Parameter(layer.weight.detach().mT.contiguous().mT)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for length in (100, 130):
        x = torch.randn(2, 16, length, device=DEVICE, requires_grad=True)

        def results(module: torch.nn.Module, x: torch.Tensor = x) -> list[torch.Tensor]:
            output = module(x)
            return [output, *torch.autograd.grad(output.tanh().sum(), (x, *layer.parameters()))]

        torch.testing.assert_close(results(compiled), results(layer))


def test_fake_kernels_predict_what_the_kernels_return() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    for case in CASES[::3]:
        operands = [t if t is None else t.to(DEVICE) for t in make_operands(case)[:3]]
        fake = OPS.conv1d(*(t if t is None else mode.from_tensor(t) for t in operands), **case.geometry)
        real = OPS.conv1d(*operands, **case.geometry)
        assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
        if real.numel() > 0:
            assert fake.stride() == real.stride()


def test_per_sample_gradients_match_a_loop() -> None:
    layer = conv1d_ext.Conv1d(4, 6, 3, padding=1, device=DEVICE, dtype=torch.float64)
    x = torch.randn(5, 4, 20, device=DEVICE, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict, item: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (item[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for n in range(5):
        for name, grad in torch.func.grad(loss)(parameters, x[n]).items():
            torch.testing.assert_close(per_sample[name][n], grad)


def test_explain_and_show_config_say_that_the_gpu_computes(capsys: pytest.CaptureFixture[str]) -> None:
    conv1d_ext.explain(conv1d_ext.Conv1d(3, 4, 2, device=DEVICE), (1, 3, 10))
    assert "computed by the CUDA kernels in float32" in capsys.readouterr().out
    assert conv1d_ext.show_config()
    assert torch.cuda.get_device_name() in capsys.readouterr().out
    with conv1d_ext.backends.cuda.flags(enabled=False):
        conv1d_ext.explain(conv1d_ext.Conv1d(3, 4, 2, device=DEVICE), (1, 3, 10))
    assert "computed by torch's own conv1d: conv1d_ext.backends.cuda.enabled is False" in capsys.readouterr().out
