"""What surrounds a layer in training, from gradient scaling to the profiler, does to converted models what it does to
torch's."""

import copy
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from operators import operators_of
from torch import Tensor, func, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.profiler import profile
from torch.utils import benchmark, checkpoint
from torch.utils.flop_counter import FlopCounterMode

import conv1d_ext

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]
ops = torch.ops.conv1d_ext


class Net(nn.Module):
    """Dense, depthwise and pointwise; two layers share their weight."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(3, 8, 5, stride=2, padding=2, dtype=dtype)
        self.depthwise = nn.Conv1d(8, 8, 4, padding="same", groups=8, dtype=dtype)
        self.first = nn.Conv1d(8, 8, 3, padding=2, padding_mode="reflect", dtype=dtype)
        self.second = nn.Conv1d(8, 8, 3, dilation=2, bias=False, dtype=dtype)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(8, dtype=dtype)
        self.head = nn.Conv1d(8, 2, 1, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.front(x))
        x = x + self.depthwise(x)
        x = nn.functional.gelu(self.second(self.first(x)))
        return self.head(self.norm(x))


def pair(dtype: torch.dtype = torch.float64) -> tuple[Net, Net]:
    """The same model with torch's layers and with these."""
    return Net(dtype), conv1d_ext.convert(Net(dtype))


def batch(dtype: torch.dtype = torch.float64, size: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(size, 3, 41, dtype=dtype)


def gradients(net: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    net.zero_grad()
    x = batch().requires_grad_()
    (run or net)(x).square().mean().backward()
    return {"input": x.grad, **{name: p.grad.clone() for name, p in net.named_parameters()}}


def test_gradients_of_a_shared_weight_match_torch() -> None:
    torchs, ours = pair()
    assert ours.second.weight is ours.first.weight
    assert len(list(ours.parameters())) == len(list(torchs.parameters()))
    torch.testing.assert_close(gradients(ours), gradients(torchs))
    twin = copy.deepcopy(ours)
    assert twin.second.weight is twin.first.weight


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> dict[str, Tensor]:
    """Trains in place; returns the state."""
    for _ in range(steps):
        optimizer.zero_grad()
        net(batch()).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("implementation", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("algorithm", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_optimizers_step_as_with_torch(algorithm: str, implementation: dict[str, bool]) -> None:
    states = []
    for net in pair():
        settings = {"momentum": 0.9} if algorithm == "SGD" else {}
        optimizer = getattr(torch.optim, algorithm)(net.parameters(), lr=1e-2, **settings, **implementation)
        states.append(train(net, optimizer))
    torch.testing.assert_close(states[1], states[0])


def test_averaged_models_match_torch() -> None:
    states = []
    for net in pair():
        average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        train(net, torch.optim.SGD(net.parameters(), lr=1e-2))
        average.update_parameters(net)
        torch.optim.swa_utils.update_bn([batch()], average)
        assert type(average.module.front) is type(net.front)
        states.append(average.state_dict())
    torch.testing.assert_close(states[1], states[0])


@pytest.mark.parametrize(("lower", "scale"), [(torch.bfloat16, 2.0**127), (torch.float16, 2.0**20)], ids=str)
def test_autocast_with_gradient_scaling_trains_as_torch(lower: torch.dtype, scale: float) -> None:
    """From a scale at which gradients overflow: the same steps are skipped, the same scales follow."""

    def scaled_training(net: Net) -> tuple[list[float], Tensor]:
        before = nn.utils.parameters_to_vector(net.parameters()).detach()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
        scales = []
        for _ in range(16):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=lower):
                loss = net(batch(torch.float32)).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales, nn.utils.parameters_to_vector(net.parameters()).detach() - before

    (expected_scales, expected), (scales, moved) = map(scaled_training, pair(torch.float32))
    assert scales == expected_scales
    steps = [later / earlier for earlier, later in pairwise([scale, *scales])]
    assert {0.5, 1.0, 2.0} == set(steps)
    assert float((moved - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_bit(use_reentrant: bool) -> None:
    _, ours = pair()
    run = partial(checkpoint.checkpoint, ours, use_reentrant=use_reentrant)
    torch.testing.assert_close(gradients(ours, run), gradients(ours), rtol=0, atol=0)
    assert operators_of(gradients, ours, run).count("conv1d_ext::conv1d") == 2 * 5


def test_selective_checkpointing_takes_the_operator_by_its_name() -> None:
    _, ours = pair()
    context = partial(checkpoint.create_selective_checkpoint_contexts, [ops.conv1d.default])
    run = partial(checkpoint.checkpoint, ours, use_reentrant=False, context_fn=context)
    torch.testing.assert_close(gradients(ours, run), gradients(ours), rtol=0, atol=0)
    names = operators_of(gradients, ours, run)
    assert names.count("conv1d_ext::conv1d") == 5
    assert names.count("aten::gelu") == 2 * 2


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "l1_unstructured": partial(prune.l1_unstructured, name="weight", amount=0.4),
    "ln_structured": partial(prune.ln_structured, name="weight", amount=2, n=2, dim=0),
    "pruned twice": lambda m: (prune.random_unstructured(m, "weight", 0.3), prune.l1_unstructured(m, "bias", 1)),
}


@pytest.mark.parametrize("order", ["changed, then converted", "converted, then changed"])
@pytest.mark.parametrize("change", CHANGES)
def test_parametrized_and_pruned_layers_train_as_torchs(change: str, order: str) -> None:
    def build(ours: bool) -> Net:
        net = Net()
        if ours and order.startswith("converted"):
            conv1d_ext.convert(net)
        torch.manual_seed(2)
        for layer in (net.front, net.depthwise):
            CHANGES[change](layer)
        return conv1d_ext.convert(net) if ours else net

    torchs, ours = build(False), build(True)
    assert isinstance(ours.front, conv1d_ext.Conv1d)
    states = [train(net, torch.optim.SGD(net.parameters(), lr=1e-2)) for net in (torchs, ours)]
    torch.testing.assert_close(states[1], states[0])
    if "prune" in change or "structured" in change:
        prune.remove(ours.front, "weight")
        assert "weight" in ours.front._parameters
        torch.testing.assert_close(ours(batch()), torchs(batch()))


def test_synchronized_batch_norm_stands_beside_it() -> None:
    """In one process; with several it is for GPUs alone, see test_distributed.py."""
    torchs, ours = (nn.SyncBatchNorm.convert_sync_batchnorm(net) for net in pair())
    for net in (ours, conv1d_ext.convert(copy.deepcopy(torchs))):
        assert type(net.norm) is nn.SyncBatchNorm
        assert type(net.front) is conv1d_ext.Conv1d
        torch.testing.assert_close(gradients(net), gradients(torchs))


def test_hooks_see_and_change_what_they_do_in_torchs_layers() -> None:
    def called(net: Net) -> list:
        calls: list = []

        def note(kind: str, name: str, *values: object) -> None:
            calls.append((kind, name, values))

        for name, layer in net.named_children():
            layer.register_forward_pre_hook(lambda _, args, name=name: note("forward pre", name, *args))
            layer.register_forward_hook(
                lambda _, args, output, name=name: (note("forward", name, output), 2 * output)[1]
            )
            layer.register_full_backward_pre_hook(lambda _, grad, name=name: note("backward pre", name, *grad))
            layer.register_full_backward_hook(
                lambda _, grad_in, grad_out, name=name: (
                    note("backward", name, *grad_in, *grad_out),
                    (3 * grad_in[0],),
                )[1]
            )
        for name, parameter in net.named_parameters():
            parameter.register_hook(lambda grad, name=name: note("gradient", name, grad))
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: note("accumulated", name, p.grad))
        everywhere = nn.modules.module.register_module_forward_hook(
            lambda layer, args, output: note("any", type(layer).__name__, output)
        )
        results = gradients(net)
        everywhere.remove()
        return [calls, results]

    torchs, ours = pair()
    expected, actual = called(torchs), called(ours)
    assert [call[:2] for call in actual[0]] == [call[:2] for call in expected[0]]
    torch.testing.assert_close([call[2] for call in actual[0]], [call[2] for call in expected[0]])
    torch.testing.assert_close(actual[1], expected[1])


def test_per_sample_gradients_match_torch() -> None:
    """As differentially private training takes them: by torch.func, and by torch's expanded weights."""

    def by_transforms(net: nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return func.functional_call(net, parameters, (sample[None],)).square().mean()

        parameters = {name: p.detach() for name, p in net.named_parameters()}
        return func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, batch())

    torchs, ours = pair()
    expected, actual = by_transforms(torchs.eval()), by_transforms(ours.eval())
    torch.testing.assert_close(actual, expected)
    assert actual["front.weight"].shape == (4, 8, 3, 5)

    x = batch()
    for name in ("front", "depthwise", "first"):
        grads = []
        for layer in (getattr(torchs, name), getattr(ours, name)):
            input = x if name == "front" else x.repeat(1, 3, 1)[:, :8]
            call_for_per_sample_grads(layer, batch_size=4)(input).square().sum().backward()
            grads.append({name: p.grad_sample for name, p in layer.named_parameters()})
        torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_names_the_layer() -> None:
    layer = conv1d_ext.Conv1d(3, 8, 5)
    x = torch.full((2, 3, 9), torch.nan)
    with (
        pytest.warns(UserWarning, match="Error detected in Conv1dBackward0(.|\\n)*in test_anomaly"),
        pytest.raises(RuntimeError, match="'Conv1dBackward0' returned nan values in its 1th"),
        torch.autograd.detect_anomaly(),
    ):
        layer(x).nan_to_num().backward(torch.ones(2, 8, 5))


def test_inference_mode_and_training_keep_apart() -> None:
    torchs, ours = pair()
    expected = ours.eval()(batch())
    with torch.inference_mode():
        seen = ours(batch())
    assert torch.equal(seen, expected)
    with torch.inference_mode():
        x = batch()
    for net in (torchs, ours):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            net(x)


def test_leaves_nothing_unwritten() -> None:
    """In this mode torch fills new tensors with NaN."""
    _, ours = pair()
    expected = gradients(ours)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        torch.testing.assert_close(gradients(ours), expected, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_is_built_without_memory_and_loaded_later() -> None:
    torchs, _ = pair()
    with torch.device("meta"):
        ours = conv1d_ext.convert(Net())
    for loaded in (copy.deepcopy(ours).to_empty(device="cpu"), ours):
        assert type(loaded.front) is conv1d_ext.Conv1d
        loaded.load_state_dict(torchs.state_dict(), assign=loaded is ours)
        loaded.second.weight = loaded.first.weight
        torch.testing.assert_close(gradients(loaded), gradients(torchs))


def test_flops_are_counted_by_module_as_torchs() -> None:
    def flops(net: Net) -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            gradients(net)
        return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    torchs, ours = pair()
    counts = flops(ours)
    assert counts == flops(torchs)
    assert counts["Net.front"] > 0


def test_profiler_shows_names_shapes_and_modules(tmp_path: Path) -> None:
    layer = conv1d_ext.Conv1d(3, 8, 5)
    x = torch.randn(2, 3, 20, requires_grad=True)
    with profile(record_shapes=True, profile_memory=True) as recorded:
        layer(x).backward(torch.ones(2, 8, 16))
    events = {event.name: event for event in recorded.events()}
    forward, node = events["conv1d_ext::conv1d"], events["Conv1dBackward0"]
    assert forward.input_shapes[:3] == [[2, 3, 20], [8, 3, 5], [8]]
    assert node.input_shapes[0] == [2, 8, 16]
    assert node.sequence_nr == forward.sequence_nr  # by which a backward is traced to its forward
    shapes = {"input": [[2, 8, 16], [8, 3, 5]], "weight": [[2, 8, 16], [2, 3, 20]], "bias": [[2, 8, 16]]}
    for name, expected in shapes.items():
        event = events[f"conv1d_ext::conv1d_backward_{name}"]
        assert event.input_shapes[: len(expected)] == expected
        assert event.cpu_parent is node
    assert "conv1d_ext::conv1d_backward_weight" in recorded.key_averages(group_by_input_shape=True).table()
    trace = tmp_path / "trace.json"
    recorded.export_chrome_trace(str(trace))
    assert "conv1d_ext::conv1d" in {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}


def test_benchmark_compares_the_layers() -> None:
    measurements = [
        benchmark.Timer(
            "net(x)", globals={"net": net, "x": batch()}, label="Net", sub_label="forward", description=description
        ).timeit(2)
        for description, net in zip(("torch", "conv1d_ext"), pair(), strict=True)
    ]
    table = str(benchmark.Compare(measurements))
    assert "torch" in table
    assert "conv1d_ext" in table
