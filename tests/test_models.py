"""Models nobody here wrote: converted ones compute, train, copy and store what the stock ones do."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from operators import operators_of
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

import conv1d_ext

hf = pytest.importorskip("transformers", reason="needs Python 3.11 or newer")
from zoo import EXAMPLES, Example  # noqa: E402

Results = dict[str, Tensor | None]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
]
every_model = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """For the models that make tensors of the default dtype on their way, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name: str) -> tuple[Example, torch.nn.Module, dict[str, Any]]:
    """An example, its model and an input; always the same."""
    hf.set_seed(0)
    example = EXAMPLES[name]
    return example, example.build(), example.inputs()


def converted(model: torch.nn.Module) -> torch.nn.Module:
    return conv1d_ext.convert(copy.deepcopy(model))


def served(example: Example) -> AbstractContextManager:
    """What beside convert the model needs to be computed by these kernels."""
    return conv1d_ext.patch_torch() if example.by_function else nullcontext()


def train(model: torch.nn.Module, run: Callable[..., list[Tensor]], inputs: dict[str, Any], steps: int) -> Results:
    """Trains in place. Returns outputs and gradients of the last step and the parameters after it."""
    inputs = {name: value.detach().clone() for name, value in inputs.items()}
    leaves = {name: value.requires_grad_() for name, value in inputs.items() if value.is_floating_point()}
    optimizer = torch.optim.SGD([*model.parameters(), *leaves.values()], lr=1e-3, momentum=0.9)
    for _ in range(steps):
        hf.set_seed(0)  # dropout, masks and noise come out the same in both models
        optimizer.zero_grad()
        outputs = run(model, **inputs)
        torch.autograd.backward(outputs, [_direction(output) for output in outputs])
        optimizer.step()
    tensors = {**leaves, **dict(model.named_parameters())}
    results: Results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    results |= {f"gradient of {name}": tensor.grad for name, tensor in tensors.items()}
    return results | {name: tensor.detach() for name, tensor in tensors.items()}


def _direction(output: Tensor) -> Tensor:
    """Neither constant nor along the output, which normalisation would map to gradients of zero."""
    return (torch.arange(output.numel()).sin() / output.numel() ** 0.5).to(output).view_as(output)


def assert_within_rounding(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    largest = max(tensor.abs().max() for tensor in expected.values() if tensor is not None and tensor.numel())
    for name, tensor in expected.items():
        if tensor is None:
            assert actual[name] is None, name
        elif tensor.numel():
            # The sum is for gradients that are zero but for rounding, such as those of biases before a softmax.
            tolerance = 1e-10 * float(tensor.abs().max() + 1e-4 * largest)
            torch.testing.assert_close(actual[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@every_model
def test_every_conv1d_is_swapped_and_back(name: str) -> None:
    _, model, _ = build(name)
    classes = {n: type(module) for n, module in model.named_modules()}
    before = sum(isinstance(module, torch.nn.Conv1d) for module in model.modules())
    reports: list[str] = []
    conv1d_ext.convert(model, report=reports.append)
    assert sum(isinstance(module, conv1d_ext.Conv1d) for module in model.modules()) == before > 0
    assert reports[0].startswith(f"Conv1d modules: {before} swapped, 0 left")
    conv1d_ext.revert(model)
    assert {n: cls.__name__ for n, cls in classes.items()} == {n: type(m).__name__ for n, m in model.named_modules()}
    assert not any(isinstance(module, conv1d_ext.Conv1d) for module in model.modules())


@every_model
def test_every_convolution_runs_here(name: str) -> None:
    """All but those transposed or of other dimensions; and equal to the bit by convert and by patch_torch."""
    example, model, inputs = build(name)
    ours = converted(model).eval()
    model.eval()

    def output(model: torch.nn.Module) -> list[Tensor]:
        hf.set_seed(0)
        return example.run(model, **inputs)

    calls = Counter(operators_of(output, model))
    others = sum(isinstance(module, (torch.nn.ConvTranspose1d, torch.nn.Conv2d)) for module in model.modules())
    with served(example):
        ours_calls, actual = Counter(operators_of(output, ours)), output(ours)
    with conv1d_ext.patch_torch():
        expected = output(model)
    if example.by_function:
        assert "conv1d_ext::conv1d" not in operators_of(output, ours)
    assert ours_calls["conv1d_ext::conv1d"] == calls["aten::convolution"] - ours_calls["aten::convolution"] > 0
    assert ours_calls["aten::convolution"] <= others
    assert all(map(torch.equal, actual, expected))


@every_model
def test_trains_as_the_stock_model(name: str, double_precision: None) -> None:
    example, model, inputs = build(name)
    model.train()
    ours = converted(model)
    expected = train(model, example.run, inputs, steps=2)
    with served(example):
        actual = train(ours, example.run, inputs, steps=2)
    assert_within_rounding(actual, expected)


@every_model
def test_rounds_no_worse_than_the_stock_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, against the stock model in float64."""
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape: randn(*shape, dtype=torch.float64).float())
    monkeypatch.setattr(torch, "randn_like", lambda tensor: torch.randn(*tensor.shape).to(tensor))
    example, model, inputs = build(name)
    model.eval()  # without dropout, which draws other numbers in float64
    ours, exact = converted(model), copy.deepcopy(model).double()
    stock = train(model, example.run, inputs, steps=1)
    with served(example):
        results = train(ours, example.run, inputs, steps=1)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    truth = train(exact, example.run, inputs, steps=1)
    for kind in ("output", "gradient"):
        names = [name for name, tensor in truth.items() if name.startswith(kind) and tensor is not None]
        assert _distance(results, truth, names) <= 2 * _distance(stock, truth, names), kind


def _distance(results: Results, truth: Results, names: list[str]) -> float:
    """Relative, of all tensors as one: some of them are zero but for rounding."""
    vector, exact = (torch.cat([r[name].double().flatten() for name in names]) for r in (results, truth))
    return ((vector - exact).norm() / exact.norm()).item()


@every_model
def test_is_copied_pickled_and_stored_as_the_stock_model(name: str, tmp_path: Path) -> None:
    example, model, inputs = build(name)
    ours = converted(model.eval())

    def output(model: torch.nn.Module) -> list[Tensor]:
        hf.set_seed(0)
        with served(example), torch.no_grad():
            return example.run(model, **inputs)

    expected = output(ours)

    def assert_same(twin: torch.nn.Module) -> None:
        assert sum(isinstance(module, conv1d_ext.Conv1d) for module in twin.modules()) == swapped
        assert all(map(torch.equal, output(twin), expected))

    swapped = sum(isinstance(module, conv1d_ext.Conv1d) for module in ours.modules())
    assert_same(copy.deepcopy(ours))
    if any(map(is_parametrized, model.modules())):  # torch pickles no such module, ours no more and no less
        with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
            pickle.dumps(model)
        with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
            pickle.dumps(ours)
    else:
        assert_same(pickle.loads(pickle.dumps(ours)))

    other = example.build().eval()
    other.load_state_dict(ours.state_dict())
    assert_same(converted(other))
    other = converted(example.build().eval())
    other.load_state_dict(model.state_dict())
    assert_same(other)

    ours.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "stock")
    files = [sorted((path.name, path.read_bytes()) for path in (tmp_path / d).iterdir()) for d in ("ours", "stock")]
    assert files[0] == files[1]
    assert_same(conv1d_ext.convert(type(model).from_pretrained(tmp_path / "ours").eval()))


@pytest.mark.parametrize("name", ["wav2vec2", "conformer", "hifigan"])
def test_autocast_rounds_no_worse_than_the_stock_model(name: str) -> None:
    example, model, inputs = build(name)
    model.eval()
    with torch.no_grad():
        (truth, *_), ours = example.run(model, **inputs), converted(model)
        with torch.autocast("cpu", torch.bfloat16):
            (expected, *_), (actual, *_) = example.run(model, **inputs), example.run(ours, **inputs)
    assert actual.dtype == expected.dtype
    assert (actual - truth).norm() <= 1.5 * (expected - truth).norm()


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_generates_the_tokens_of_the_stock_model(name: str, double_precision: None) -> None:
    """Token by token, each from the last few positions that the cache holds."""
    _, model, inputs = build(name)
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.eval().generate(**inputs, **options)
    with conv1d_ext.patch_torch():
        actual = model.generate(**inputs, **options)
        assert "conv1d_ext::conv1d" in operators_of(model.generate, **inputs, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-9, atol=1e-12)


def test_streams_the_codes_of_the_stock_model(double_precision: None) -> None:
    """Mimi, frame by frame: the convolutions get what a cache holds and the new samples, down to one position."""
    _, model, inputs = build("mimi")
    frames = inputs["input_values"].split(model.config.frame_size, dim=2)

    def stream(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        latents, codes, caches = [], [], {}
        for frame in frames:
            encoded = model.encoder(frame, use_streaming=True, **caches)
            caches = {"past_key_values": encoded.past_key_values, "padding_cache": encoded.padding_cache}
            latents.append(encoded.latents)
            codes.append(model.quantizer.encode(encoded.latents))
        return torch.cat(latents, dim=2), torch.cat(codes, dim=2)

    with torch.no_grad():
        latents, codes = stream(model.eval())
        our_latents, our_codes = stream(converted(model))
    assert len(codes.unique()) > 8
    assert torch.equal(our_codes, codes)
    torch.testing.assert_close(our_latents, latents, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi"])
def test_finds_the_codes_of_the_stock_model(name: str, double_precision: None) -> None:
    _, model, inputs = build(name)
    with torch.no_grad():
        expected = model.eval()(**inputs)
        actual = converted(model)(**inputs)
    assert len(expected.audio_codes.unique()) > 8
    assert torch.equal(actual.audio_codes, expected.audio_codes)
    torch.testing.assert_close(actual.audio_values, expected.audio_values, rtol=1e-9, atol=1e-12)
