"""The libraries for C++ programs: built, installed and used as the comments in CMakeLists.txt say."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_hardening import FORBIDDEN, check_hardened, symbols
from torch import Tensor
from torch.utils.cpp_extension import CUDA_HOME

import conv1d_ext

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        torch.version.cuda is not None and CUDA_HOME is None,
        reason="torch's own CMake files refuse a CUDA build of torch where there is no CUDA toolkit",
    ),
]


def run(*command: object, cwd: Path = ROOT) -> None:
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def configure(source: Path, build: Path, *prefixes: object) -> None:
    prefix_path = ";".join(map(str, [torch.utils.cmake_prefix_path, *prefixes]))
    linker = "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed"  # which is what some distributions link with
    run("cmake", "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix_path}", linker)


@pytest.fixture(scope="module")
def build_tree() -> Path:
    """A fixed place, so that a second run compiles what has changed alone."""
    tree = ROOT / "build/cmake-torch"
    configure(ROOT, tree)
    run("cmake", "--build", tree, "--parallel", os.environ.get("MAX_JOBS", os.cpu_count()))
    return tree


@pytest.fixture(scope="module")
def installed(build_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build_tree, "--prefix", prefix)
    return prefix


def test_build_tree_passes_its_tests(build_tree: Path) -> None:
    """The kernels' tests, compiled for speed, and the example."""
    run("ctest", "--output-on-failure", "--no-tests=error", cwd=build_tree)


@pytest.fixture(scope="module")
def programs(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, built on the installed library alone."""
    directory = tmp_path_factory.mktemp("programs")
    configure(ROOT / "examples/cpp", directory, installed)
    run("cmake", "--build", directory)
    return directory


def test_installed_library_serves_a_cpp_program(programs: Path) -> None:
    run(programs / "example")


def make_model() -> torch.nn.Module:
    first = torch.nn.Conv1d(2, 16, 7, stride=2, padding=3, padding_mode="reflect")
    return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Conv1d(16, 16, 4, padding="same", groups=4))


def save_traced(model: torch.nn.Module, x: Tensor, directory: Path) -> Path:
    torch.jit.trace(model, x).save(directory / "model.pt")
    return directory / "model.pt"


def save_scripted(model: torch.nn.Module, x: Tensor, directory: Path) -> Path:
    torch.jit.script(model).save(directory / "model.pt")
    return directory / "model.pt"


def save_compiled(model: torch.nn.Module, x: Tensor, directory: Path) -> Path:
    exported = torch.export.export(model, (x,))
    return Path(torch._inductor.aoti_compile_and_package(exported, package_path=str(directory / "model.pt2")))


@pytest.mark.parametrize("save", [save_traced, save_scripted, save_compiled])
def test_cpp_program_runs_a_model_from_python(save: Callable[..., Path], programs: Path, tmp_path: Path) -> None:
    model, x = conv1d_ext.convert(make_model()).eval(), torch.randn(3, 2, 500)
    with torch.no_grad():
        saved = save(model, x, tmp_path)
        torch.save(x, tmp_path / "input.pt")
        run(programs / "run_model", saved, tmp_path / "input.pt", tmp_path / "output.pt")
        torch.testing.assert_close(torch.load(tmp_path / "output.pt"), model(x))


def test_library_is_hardened(build_tree: Path) -> None:
    library = build_tree / "libconv1d_ext_ops.so"
    check_hardened(library)
    assert not list(filter(FORBIDDEN.fullmatch, symbols(library)[1]))


LOAD_LIBRARY = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x, w = torch.randn(2, 4, 30, requires_grad=True), torch.randn(6, 2, 3, requires_grad=True)
y = torch.ops.conv1d_ext.conv1d(x, w, stride=2, padding_left=1, padding_right=1, groups=2)
expected = torch.nn.functional.conv1d(x, w, stride=2, padding=1, groups=2)
torch.testing.assert_close(y, expected)
for actual, wanted in zip(torch.autograd.grad(y.sum(), (x, w)), torch.autograd.grad(expected.sum(), (x, w))):
    torch.testing.assert_close(actual, wanted)
assert "conv1d_ext" not in sys.modules
"""


def test_installed_library_serves_load_library(installed: Path) -> None:
    library = next(installed.rglob("libconv1d_ext_ops.so"))
    run(sys.executable, "-c", LOAD_LIBRARY, library)
