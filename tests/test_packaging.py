"""What users install: the sdist builds by itself, the wheel holds what it should, a build that cannot work says why."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import conv1d_ext
from conv1d_ext import _C

ROOT = Path(__file__).parents[1]
TOP_FILES = ["pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", ".ci/run"]
TOP_FILES += ["CMakeLists.txt", "CMakePresets.json", ".github/workflows/wheels.yml"]


def python(
    *arguments: object, interpreter: Path = Path(sys.executable), cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [str(interpreter), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`build` makes the wheel from the sdist alone, so that nothing it needs can be missing there."""
    directory = tmp_path_factory.mktemp("archives")
    result = python("-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory


@pytest.fixture(scope="module")
def sdist(archives: Path) -> Path:
    return next(archives.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    return next(archives.glob("*.whl"))


@pytest.mark.long
def test_sdist_holds_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    suffixes = {".cpp", ".h", ".cu", ".cuh", ".py", ".pyi", ".typed", ".txt", ".json", ".md", ".png"}
    folders = ["csrc", "conv1d_ext", "tests", "benchmarks", "examples", "requirements", "docs"]
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
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    major, minor = torch.__version__.split(".")[:2]
    assert f"\nVersion: {conv1d_ext.__version__}\n" in metadata
    assert f"\nRequires-Dist: torch=={major}.{minor}.*\n" in metadata


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, and with the other packages of this one."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=True)
    packages = next(directory.glob("lib/python*/site-packages"))
    for path in Path(torch.__file__).parents[1].iterdir():
        if "conv1d_ext" not in path.name and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    interpreter = directory / "bin/python"
    # Finds torch by the wheel's metadata, or fails.
    result = python("-m", "pip", "install", "--no-index", wheel, interpreter=interpreter, cwd=directory)
    assert result.returncode == 0, result.stdout + result.stderr
    return interpreter


@pytest.mark.long
def test_installed_wheel_works(installed: Path, tmp_path: Path) -> None:
    result = python("-m", "conv1d_ext", interpreter=installed, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(installed.parents[1]) in result.stdout


@pytest.mark.long
def test_installed_wheel_runs_the_readme(installed: Path, tmp_path: Path) -> None:
    readme = Sybil([PythonCodeBlockParser()]).parse(ROOT / "README.md")
    code = "\n".join(example.parsed for example in readme.examples())
    result = python("-c", code, interpreter=installed, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "GFLOP/s" in result.stdout


def test_version_is_written_once() -> None:
    for name in ["setup.py", "pyproject.toml", "CMakeLists.txt"]:
        assert f'"{conv1d_ext.__version__}"' not in (ROOT / name).read_text()


def test_isa_flags_are_the_same_in_both_builds() -> None:
    setup, cmake = (ROOT / "setup.py").read_text(), (ROOT / "CMakeLists.txt").read_text()
    in_setup = dict(re.findall(r'ISA_FLAGS\["(\w+)"\] = "(.*)"', setup))
    assert in_setup.keys() == {"avx2", "avx512", "avx512_bf16", "amx"}
    assert in_setup == dict(re.findall(r"set\(flags_(a\w+) (.*)\)", cmake))


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


def test_import_says_that_torch_is_another() -> None:
    built_for = _C.build_info()["torch"]
    result = python("-c", f"{OLD_TORCH}; import conv1d_ext")
    assert result.returncode == 1
    message = f"ImportError: conv1d_ext was built for torch {built_for}, and this is torch 2.12.1: install"
    assert result.stderr.splitlines()[-1].startswith(message)


def test_import_says_so_where_the_loader_fails(tmp_path: Path) -> None:
    """As on undefined symbols, of a nightly build under the same version."""
    shutil.copytree(ROOT / "conv1d_ext", tmp_path / "conv1d_ext", ignore=shutil.ignore_patterns("*.so"))
    version = torch.__version__.partition("+")[0]
    (tmp_path / "conv1d_ext/_C.so").write_text(f"conv1d_ext built for torch {version}")
    last_line = python("-c", "import conv1d_ext", cwd=tmp_path).stderr.splitlines()[-1]
    message = f"ImportError: conv1d_ext was built for torch {version}, and this is torch {torch.__version__}: install"
    assert last_line.startswith(message)
    assert "conv1d_ext/_C.so: " in last_line  # the loader's own


def test_import_says_that_there_is_nothing_for_this_python() -> None:
    result = python("-c", "import importlib.util as u; u.find_spec = lambda name: None; import conv1d_ext")
    assert re.search(rf"ImportError: {ROOT}/conv1d_ext is not compiled for Python \d", result.stderr)
