"""What can be said of the CUDA kernels without a GPU: whether they were built, the switch, what ptxas reports."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import ptxas_report
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import conv1d_ext
from conv1d_ext import _C

ROOT = Path(__file__).parents[1]
BUILT = _C.build_info()["cuda"]
OPERATORS = ["conv1d", "conv1d_backward_input", "conv1d_backward_weight", "conv1d_backward_bias"]
built = pytest.mark.skipif(not BUILT, reason="conv1d_ext was built without CUDA kernels")


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_are_registered_if_they_were_built(operator: str) -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"conv1d_ext::{operator}", "CUDA")
    assert has_kernel == bool(BUILT)
    assert torch.version.cuda or not has_kernel


def test_switch_is_on_and_is_put_back() -> None:
    cuda = conv1d_ext.backends.cuda
    seen = []
    with contextlib.suppress(KeyError), cuda.flags(enabled=False):
        with cuda.flags():
            seen.append(cuda.enabled)
        thread = threading.Thread(target=lambda: seen.append(cuda.enabled))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == [False, False]
    assert cuda.enabled


def test_show_config_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    with conv1d_ext.backends.cuda.flags(enabled=False):
        conv1d_ext.show_config()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("CUDA kernels"))
    assert ("not built: CUDA tensors go to torch" in line) == (not BUILT)
    if BUILT:
        assert f"built for {BUILT}, switched off" in line
        assert torch.cuda.is_available() or line.endswith("no GPU found")


def layer_on_gpu(*sizes: int) -> torch.nn.Conv1d:
    """Of fake tensors, which need no GPU."""
    layer = conv1d_ext.Conv1d(*sizes, bias=False, device="meta")
    with FakeTensorMode():
        layer.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, device="cuda"))
    return layer


@pytest.mark.parametrize("enabled", [True, False])
def test_explain_says_why_torch_computes_on_a_gpu(enabled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and BUILT and enabled:
        pytest.skip("here it is computed by the kernels")
    reason = "the CUDA kernels were not built"
    if BUILT:
        reason = "no GPU found" if enabled else "conv1d_ext.backends.cuda.enabled is False"
    with conv1d_ext.backends.cuda.flags(enabled=enabled):
        conv1d_ext.explain(layer_on_gpu(3, 4, 2), (1, 3, 10))
    assert f"computed by torch's own conv1d: {reason}" in capsys.readouterr().out


def test_explain_names_the_arithmetic_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = layer_on_gpu(64, 128, 5)
    monkeypatch.setattr(_C, "build_info", lambda: {"cuda": "sm_80"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(conv1d_ext.explain.__globals__, "cuda_arithmetic", lambda dtype, device: "TF32")
    conv1d_ext.explain(layer, (4, 64, 1004))
    # 2 x 4 x 128 x 1000 x 64 x 5; 4 (4 x 64 x 1004 + 128 x 64 x 5 + 4 x 128 x 1000)
    assert "computed by the CUDA kernels in TF32: 327.7 MFLOP, 3.2 MB a pass" in capsys.readouterr().out


@built
def test_arithmetic_follows_the_dtype_and_the_gpu() -> None:
    oldest = min(int(name.rpartition("_")[2]) for name in BUILT.split())

    def on(dtype: torch.dtype, capability: int) -> str | None:
        return _C.cuda_arithmetic(dtype, capability, 99 << 10)

    assert on(torch.float64, 90) == "float64"
    assert on(torch.complex128, 90) == "float64"
    assert on(torch.bfloat16, 90) == "bfloat16"
    assert on(torch.float16, 90) == "float16"
    assert [on(dtype, 90) for dtype in (torch.int64, torch.complex32, torch.float8_e4m3fn)] == [None] * 3
    assert on(torch.float64, oldest - 5) is None


@built
def test_arithmetic_of_float32_follows_torchs_settings() -> None:
    def arithmetic(dtype: torch.dtype = torch.float32) -> str | None:
        return _C.cuda_arithmetic(dtype, 90, 227 << 10)

    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    try:
        assert (arithmetic(), arithmetic(torch.complex64)) == ("TF32", "TF32")  # torch's default
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert (arithmetic(), arithmetic(torch.complex64)) == ("float32", "float32")
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=True):
            assert arithmetic() == "float32"
        for precision, expected in (("ieee", "float32"), ("tf32", "TF32")):
            conv.fp32_precision = precision
            assert arithmetic() == expected
    finally:
        conv.fp32_precision = before


@built
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_runs_with_the_cuda_libraries_that_torch_brings() -> None:
    """Nothing of the toolkit's is named: no path, and no library that torch has not loaded."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with open(_C.__file__, "rb") as file:
        dynamic = next(s for s in ELFFile(file).iter_sections() if isinstance(s, DynamicSection))
        tags = [(tag.entry.d_tag, getattr(tag, "needed", None)) for tag in dynamic.iter_tags()]
    assert not {"DT_RPATH", "DT_RUNPATH"} & {tag for tag, _ in tags}
    cuda_libraries = {name.partition(".so")[0] for tag, name in tags if name and "cu" in name}
    assert cuda_libraries == {"libcudart", "libc10_cuda"}


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--version"]
    environment = os.environ | {"CUDA_HOME": "/nonexistent"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_setup_says_what_cuda_is_missing() -> None:
    result = run_setup(CONV1D_EXT_CUDA="1")
    missing = "there is no nvcc" if torch.version.cuda else f"torch {torch.__version__} is no CUDA build"
    message = f"conv1d_ext cannot be built with CUDA kernels (CONV1D_EXT_CUDA=1): {missing}"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("wish", ["0", ""])
def test_setup_does_without_cuda(wish: str) -> None:
    result = run_setup(CONV1D_EXT_CUDA=wish)
    assert (result.returncode, result.stdout.strip()) == (0, conv1d_ext.__version__)


LOG = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'
ptxas info    : Function properties for _Z1kv
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 360 bytes cmem[0]
"""
PTX = ".visible .entry _Z1kv(\n.param .u64 p\n)\n{bounds}\n{{\nret;\n}}\n"
FINE = {"stack": 0, "spills": 0, "registers": 128, "bounds": ".maxntid 256, 1, 1\n.minnctapersm 2"}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"spills": 8}, "spills"),
        ({"stack": 16}, "has a stack frame"),
        ({"registers": 129}, "has too many registers for its blocks"),
        ({"bounds": ".maxntid 256, 1, 1"}, "states no __launch_bounds__"),
    ],
    ids=str,
)
def test_ptxas_report_finds(
    changed: dict, problem: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = FINE | changed
    (tmp_path / "log").write_text(LOG.format(**numbers))
    (tmp_path / "a.compute_80.ptx").write_text(PTX.format(**numbers))
    assert ptxas_report.main(tmp_path / "log", tmp_path) == (problem is not None)
    printed = capsys.readouterr().out
    assert " blocks  k" in printed
    assert (problem or "1 kernels passed, 0 failed") in printed


def test_ptxas_report_refuses_to_pass_without_kernels(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    assert ptxas_report.main(tmp_path / "log", tmp_path) == 1
