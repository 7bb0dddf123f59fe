"""The libraries for C++ programs: built, installed and used as the comments in CMakeLists.txt say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import CUDA_HOME

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
    run("cmake", "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix_path}")


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


def test_installed_library_serves_a_cpp_program(installed: Path, tmp_path: Path) -> None:
    configure(ROOT / "examples/cpp", tmp_path, installed)
    run("cmake", "--build", tmp_path)
    run(tmp_path / "example")


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
