"""What users install: the sdist builds by itself, the wheel holds what it should, a build that cannot work says why."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import conv1d_ext

ROOT = Path(__file__).parents[1]
TOP_FILES = ["pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CMakeLists.txt", "CMakePresets.json", "Makefile"]


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def build(kind: str, source: Path, out: Path) -> Path:
    """The one archive that `python -m build` makes."""
    result = python("-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, so that nothing it needs can be missing there."""
    directory = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    return build("wheel", directory / sdist.name.removesuffix(".tar.gz"), directory)


@pytest.mark.long
def test_sdist_holds_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    suffixes = {".cpp", ".h", ".py", ".pyi", ".typed", ".txt", ".json"}
    folders = ["csrc", "conv1d_ext", "tests", "benchmarks", "examples", "requirements"]
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    assert {str(p.relative_to(ROOT)) for p in files} | set(TOP_FILES) <= held
    assert not [name for name in held if name.endswith((".so", ".pyc", ".o"))]


@pytest.mark.long
def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    extension = {name for name in package if re.fullmatch(r"conv1d_ext/_C\..*\.so", name)}
    python_files = {f"conv1d_ext/{path.name}" for path in (ROOT / "conv1d_ext").glob("*.py")}
    assert len(extension) == 1
    assert package == extension | python_files | {"conv1d_ext/py.typed", "conv1d_ext/_C.pyi"}


@pytest.mark.long
def test_wheel_asks_for_the_torch_of_its_build(wheel: Path) -> None:
    import torch

    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    major, minor = torch.__version__.split(".")[:2]
    assert f"\nVersion: {conv1d_ext.__version__}\n" in metadata
    assert f"\nRequires-Dist: torch=={major}.{minor}.*\n" in metadata


@pytest.mark.long
def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    python("-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel).check_returncode()
    check = "import conv1d_ext; assert conv1d_ext.__file__.startswith(os.getcwd()); conv1d_ext.show_config()"
    result = python("-c", f"import os; {check}", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_version_is_written_once() -> None:
    for name in ["setup.py", "pyproject.toml", "CMakeLists.txt"]:
        assert f'"{conv1d_ext.__version__}"' not in (ROOT / name).read_text()


def test_isa_flags_are_the_same_in_both_builds() -> None:
    setup, cmake = (ROOT / "setup.py").read_text(), (ROOT / "CMakeLists.txt").read_text()
    in_setup = dict(re.findall(r'ISA_FLAGS\["(\w+)"\] = "(.*)"', setup))
    assert in_setup.keys() == {"avx2", "avx512", "avx512_bf16"}
    assert in_setup == dict(re.findall(r"set\(flags_(avx\w+) (.*)\)", cmake))


HIDE_TORCH = "sys.modules['torch'] = None"
OLD_TORCH = "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.12.1')"


@pytest.mark.parametrize(("prepare", "found"), [(HIDE_TORCH, "torch"), (OLD_TORCH, "found torch 2.12.1")])
def test_setup_says_which_torch_is_missing(prepare: str, found: str) -> None:
    result = python("-c", f"import runpy, sys; {prepare}; runpy.run_path('setup.py')")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "2.13 or newer" in result.stderr
    assert found in result.stderr


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_setup_says_that_the_compiler_is_missing(compiler: str, tmp_path: Path) -> None:
    result = python("setup.py", "-q", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path, CXX=compiler)
    assert result.returncode == 1
    assert "needs a C++20 compiler" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.o"))
