"""The benchmarks measure what they say and keep what they measured; how fast things are is not tested."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import growth, measure, peers, workload
from benchmarks.layers import PUBLIC_LAYERS, Layer, load
from benchmarks.report import summary, table
from benchmarks.result import COPY, Result
from conv1d_ext import _C

TINY = {"id": "tiny", "model": "none", "N": 2, "C_in": 4, "L_in": 9, "C_out": 6, "K": 4, "groups": 2, "padding": "same"}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A file of one layer."""
    path = tmp_path / "layers.json"
    path.write_text(json.dumps([TINY]))
    return path


def make_result(name: str, ratios: dict[str, float], **others: Any) -> Result:
    """Of a layer with 16 FLOP, which takes conv1d_ext a second."""
    fields = {
        "layer": Layer(name, "none", 1, 1, 8, 1, 1),
        "device": "cpu",
        "dtype": "float32",
        "mode": "forward",
        "threads": 1,
        "rounds": 3,
        "seconds": {peers.OURS: 1.0, COPY: 0.5},
        "ratios": ratios,
        "memory_share": 0.5,
        "errors": {"torch": 1e-7, peers.OURS: 1e-7},
        "peak": 20.0,
        "failures": {},
    }
    return Result(**fields | others)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_measures_a_layer_end_to_end(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")]
    code = benchmarks.main(["--layers", str(tiny), "--threads", "1", "--seconds", "0", "--devices", "cpu", *files])
    printed = capsys.readouterr().out
    assert code == 0
    assert "training, float32, cpu, 1 thread" in printed
    assert "against torch: geometric mean" in printed
    assert {path.name.split("-")[0] for path in (tmp_path / "plots").glob("*.png")} == {"speedup", "roofline"}

    document = json.loads((tmp_path / "out.json").read_text())
    assert document.keys() == {"machine", "settings", "results"}
    forward, training = document["results"]
    assert (forward["mode"], training["mode"]) == ("forward", "training")
    assert forward["layer"]["name"] == "tiny"
    assert forward["flops"] == 2 * 2 * 9 * 6 * 2 * 4
    assert forward["bytes"] == 4 * (2 * 4 * 9 + 6 * 2 * 4 + 2 * 6 * 9)
    assert training["flops"] == 3 * forward["flops"]
    for result in document["results"]:
        assert result["seconds"].keys() == {"torch", "conv1d_ext", "copy"}
        assert result["ratios"].keys() == {"torch"}
        assert result["errors"].keys() == {"torch", "conv1d_ext", "direct", "reduced-precision"}
        assert max(result["errors"].values()) < 1e-6
        assert result["rounds"] == measure.MIN_ROUNDS


def test_reports_what_was_measured_before_an_interrupt(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted_measure(workload: workload.Workload, *_: object) -> Result:
        if workload.mode == "training":
            raise KeyboardInterrupt
        return make_result("first", {"torch": 2.0})

    monkeypatch.setattr(benchmarks, "measure", interrupted_measure)
    path = tmp_path / "out.json"
    code = benchmarks.main(["--layers", str(tiny), "--devices", "cpu", "--json", str(path)])
    assert code == 130
    assert "interrupted" in capsys.readouterr().out
    assert [result["layer"]["name"] for result in json.loads(path.read_text())["results"]] == ["first"]


def test_summary_names_the_lowest_and_the_losers() -> None:
    results = [
        make_result("a", {"torch": 4.0, "openvino": 2.0}),
        make_result("b", {"torch": 0.5}, failures={"openvino": "no such layer"}),
        make_result("c", {"torch": 4.0}),
    ]
    assert summary(results) == [
        "against torch: geometric mean 2.00x over 3 layers, lowest 0.50x (b), slower on b 0.50",
        "against openvino: geometric mean 2.00x over 1 layers, lowest 2.00x (a), slower on none",
        "against best of these: geometric mean 1.59x over 3 layers, lowest 0.50x (b), slower on b 0.50",
        "openvino failed with no such layer: b",
    ]


def test_limit_is_the_greater_share() -> None:
    assert make_result("a", {}).limit == (0.8, "FMA")
    assert make_result("a", {}, memory_share=0.9).limit == (0.9, "memory")
    assert make_result("a", {}, peak=None).limit == (0.5, "memory")


def test_gpu_stands_beside_the_fastest_cpu() -> None:
    on_cpu = [make_result("a", {}, threads=n, seconds={peers.OURS: 4.0 / n}) for n in (1, 2)]
    on_gpu = [make_result(name, {}, device="cuda", peak=None) for name in "ab"]
    last = table("", on_gpu, on_cpu + on_gpu).columns[-1]
    assert (last.header, list(last.cells)) == ("x CPU", ["2.00", "-"])


def test_engines_take_turns_over_all_operands() -> None:
    calls: list[tuple[str, int]] = []
    engines = {name: lambda i, name=name: calls.append((name, i)) for name in ("a", "b")}
    samples = measure.take_turns(engines, operands=3, seconds=0, pause=0, synchronize=lambda: None)
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys(engines, measure.MIN_ROUNDS)
    assert [i for _, i in calls[:7]] == [0, 1, 2, 0, 1, 2, 0]
    turns = [name for name, _ in itertools.groupby(name for name, _ in calls)]
    assert turns == ["a", "b"] * (2 + measure.MIN_ROUNDS)  # twice to warm up


def test_rotation_outgrows_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "_cache_bytes", lambda _: 4000)
    assert len(workload.rotation(torch.zeros(500))) == 4  # 2000 bytes each
    assert len(workload.rotation(torch.zeros(5))) == workload.MAX_ROTATION
    assert len(workload.rotation(torch.zeros(5000))) == 1


@pytest.mark.parametrize(
    ("peer", "padding_mode"),
    [
        *itertools.product(["onnxruntime", "openvino"], ["zeros", "reflect", "replicate"]),
        ("onnxruntime", "circular"),  # OpenVINO has none
    ],
)
def test_peer_computes_the_layer(peer: str, padding_mode: str) -> None:
    if missing := peers.missing_packages(peer):
        pytest.skip(f"not installed: {missing}")
    layer = Layer("a", "none", 2, 4, 9, 6, 3, 2, padding=2, dilation=2, groups=2, padding_mode=padding_mode)
    module, inputs = layer.module("cpu", torch.float32), [torch.randn(layer.input_shape) for _ in range(2)]
    engine = peers.peer_forward(peer, module, inputs, threads=1)
    for i, input in enumerate(inputs):
        torch.testing.assert_close(torch.from_numpy(engine(i)), module(input))


def test_variants_of_the_cpus_switches_run_on_the_cpu_alone() -> None:
    for variant in peers.VARIANTS:
        assert peers.supports(variant, "training", torch.float32, "cpu")
        assert not peers.supports(variant, "training", torch.float32, "cuda")
    assert peers.supports("torch", "training", torch.float32, "cuda")


def test_says_that_there_is_nothing_to_measure_on_a_gpu(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and _C.build_info()["cuda"]:
        pytest.skip("there is")
    assert benchmarks.main(["--layers", str(tiny), "--devices", "cuda"]) == 0
    assert "nothing is measured on" in capsys.readouterr().out


def test_public_layers_are_valid() -> None:
    layers = load(PUBLIC_LAYERS)
    assert len({layer.name for layer in layers}) == len(layers) >= 40
    assert all(min(layer.output_shape) > 0 for layer in layers)


TOO_SHORT = {"id": "a", "model": "b", "N": 1, "C_in": 1, "L_in": 2, "C_out": 1, "K": 3}


@pytest.mark.parametrize(("entry", "message"), [({"id": "a", "wheels": 4}, "wheels"), (TOO_SHORT, "a: Calculated")])
def test_rejects_a_file_with_what_is_no_layer(
    entry: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(SystemExit):
        benchmarks.main(["--layers", str(path)])
    error = capsys.readouterr().err
    assert "--layers: " in error
    assert message in error


def test_growth_measures_and_plots_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {size: Layer("tiny", "none", 1, 4, size, 4, 3) for size in (10, 20)}
    monkeypatch.setattr(growth, "SWEEPS", {"length": small})
    plot = tmp_path / "growth.png"
    assert growth.main(["--sweeps", "length", "--seconds", "0", "--plot", str(plot)]) == 0
    assert plot.exists()
    assert "10, 20" in capsys.readouterr().out
