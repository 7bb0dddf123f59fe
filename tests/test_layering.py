"""The laws between the layers (README, Design): who includes whom, and what the kernels' object files export."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
KERNEL_FILES = [
    CSRC / "problem.h",
    *CSRC.glob("cpu/*_inl.h"),
    *CSRC.glob("cpu/vec_*.h"),
    *CSRC.glob("cpu/isa_*.cpp"),
    *CSRC.glob("cpu/*plan*"),
    CSRC / "cpu/kernel_table.h",
]
CUDA_KERNEL_FILES = [p for p in CSRC.glob("cuda/*") if p.name != "conv1d_cuda.cpp"]
PYTHON_LAYERS = ["__init__", "convert", "modules", "functional", "_ops", "_vmap", "_fake"]


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include [<"](.+?)[>"]', path.read_text(), re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", KERNEL_FILES + CUDA_KERNEL_FILES, ids=relative)
def test_kernels_do_not_know_torch(path: Path) -> None:
    assert not [i for i in includes(path) if i.startswith(("torch/", "ATen/", "c10/"))]


@pytest.mark.parametrize("path", sorted(CSRC.glob("*.*")), ids=relative)
def test_upper_layers_do_not_know_backends(path: Path) -> None:
    backends = [i for i in includes(path) if i.startswith(("cpu/", "cuda/"))]
    if path.name == "python.cpp":  # reports the instruction sets and plans
        backends = [i for i in backends if i not in ("cpu/allowed.h", "cpu/isa.h")]
    assert not backends


@pytest.mark.parametrize("path", sorted([*CSRC.glob("cpu/*.*"), *CSRC.glob("cuda/*.*")]), ids=relative)
def test_backends_do_not_know_each_other(path: Path) -> None:
    other = {"cpu": "cuda", "cuda": "cpu"}[path.parent.name]
    assert not [i for i in includes(path) if i.startswith(other)]


@pytest.mark.parametrize("path", [p for p in CUDA_KERNEL_FILES if p.name != "device.cuh"], ids=relative)
def test_kernels_know_cuda_through_device_cuh_alone(path: Path) -> None:
    """So that tests/emulator can stand in for it."""
    own = {p.name for p in CUDA_KERNEL_FILES} | {f"cuda/{p.name}" for p in CUDA_KERNEL_FILES} | {"problem.h"}
    foreign = [i for i in includes(path) if i not in own]
    assert not [i for i in foreign if i.startswith(("cuda", "cooperative_groups", "mma", "cub/", "cute/"))]


@pytest.mark.parametrize("path", [p for p in KERNEL_FILES if "plan" not in p.name], ids=relative)
def test_kernels_use_no_standard_templates(path: Path) -> None:
    """An inline std:: function compiled for AVX-512 may be the copy that the linker keeps for the whole process."""
    assert {i for i in includes(path) if "/" not in i and i != "problem.h"} <= {"immintrin.h", "cstdint"}


def test_python_imports_point_one_way() -> None:
    for i, layer in enumerate(PYTHON_LAYERS):
        source = (ROOT / f"conv1d_ext/{layer}.py").read_text()
        for above in PYTHON_LAYERS[:i]:
            assert not re.search(rf"^\s*(from|import) .*\b{above}\b", source, re.MULTILINE), f"{layer} imports {above}"


ISA_FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
ISA_FLAGS["avx512"] = [*ISA_FLAGS["avx2"], *(f"-mavx512{x}" for x in ("f", "bw", "vl", "dq"))]
ISA_FLAGS["avx512_bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]
ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]


@pytest.mark.skipif(not sysconfig.get_platform().endswith("x86_64"), reason="other CPUs have the portable kernels only")
@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_isa_objects_export_their_table_alone(isa: str, tmp_path: Path) -> None:
    """Unoptimised, so that nothing is inlined away that a compiler might emit."""
    compiler = ["g++", "-std=c++20", "-O0", "-c", f"-I{CSRC}", *ISA_FLAGS[isa]]
    subprocess.run([*compiler, CSRC / f"cpu/isa_{isa}.cpp", "-o", tmp_path / "isa.o"], check=True)
    symbols = subprocess.run(["nm", "-C", tmp_path / "isa.o"], check=True, capture_output=True, text=True).stdout
    exported = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if line[17] in "TDBRVWu"]
    tables = {"avx512_bf16": ["bfloat16_kernels"], "amx": ["bfloat16_kernels", "float32_kernels"]}
    assert sorted(exported) == [f"conv1d_ext::{isa}::{table}" for table in tables.get(isa, ["kernel_table"])]
