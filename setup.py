"""Builds conv1d_ext._C with torch's compiler settings; one object file per instruction set for the kernels, and those
of the CUDA kernels where torch is a CUDA build and there is an nvcc."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from setuptools import setup

try:
    import torch

    if torch.__version__ < (2, 13):
        raise ImportError(f"found torch {torch.__version__}")
except ImportError as error:
    sys.exit(
        f"conv1d_ext is built against the torch it will run with, 2.13 or newer ({error}): install that, then "
        "conv1d_ext with `pip install --no-build-isolation`"
    )
# Of an nvcc on the PATH torch takes the folder above for CUDA_HOME, which links and wrappers make wrong; nvcc knows.
if shutil.which("nvcc") and not {"CUDA_HOME", "CUDA_PATH"} & os.environ.keys():
    steps = subprocess.run(["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    if found := re.search(r"^#\$ TOP=(.+)", steps, re.MULTILINE):
        os.environ["CUDA_HOME"] = str(Path(found[1]).resolve())
from torch.utils import cpp_extension
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, get_cxx_compiler

ROOT = Path(__file__).parent
# OpenMP in both steps: without it at::parallel_for, which is inlined here, silently runs on one thread.
# -g0: Python's own flags often hold -g, and with torch's headers that is a very large library.
COMPILE_FLAGS = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]
# These cost nothing: they check calls of libc and frames with arrays, of which the kernels have none that count.
COMPILE_FLAGS += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
# Keeps loops over a few vectors from becoming calls of memcpy, which take longer (24 % of a small pointwise layer).
KERNEL_FLAG = "-fno-tree-loop-distribute-patterns"
# The version script hides what -fvisibility does not: inline functions of torch's headers, declared as visible.
LINK_FLAGS = ["-fopenmp", "-Wl,-z,relro,-z,now,-z,noexecstack", f"-Wl,--version-script={ROOT / 'csrc/python.map'}"]
# The same table stands in CMakeLists.txt. Every file is built for the baseline CPU but these, which are only
# called after cpuid has shown that the CPU has the instructions (csrc/cpu/isa.cpp).
ISA_FLAGS = {"portable": ""}
if sysconfig.get_platform().endswith("x86_64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"
    ISA_FLAGS["avx512_bf16"] = "-mavx512bf16 -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"
    ISA_FLAGS["amx"] = "-mamx-tile -mamx-bf16 -mavx512bf16 -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"
# Host code as above. torch adds -gencode for TORCH_CUDA_ARCH_LIST, by default for these, as far as nvcc knows them.
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xcompiler", "-g0,-fvisibility=hidden,-fstack-protector-strong"]
CUDA_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


def nvcc(*arguments: str) -> str:
    return subprocess.run([f"{CUDA_HOME}/bin/nvcc", *arguments], capture_output=True, text=True, check=True).stdout


def missing_for_cuda() -> str | None:
    """Why the CUDA kernels cannot be built."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is no CUDA build"
    try:
        (release,) = re.findall(r"release (\d+)", nvcc("--version"))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return f"there is no nvcc: CUDA_HOME is {CUDA_HOME}, and none is on the PATH"
    if release != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release}, and torch of CUDA {torch.version.cuda}"
    return None


def builds_cuda() -> bool:
    """CONV1D_EXT_CUDA=0 or 1 decides; otherwise, whether it can be."""
    wish = os.environ.get("CONV1D_EXT_CUDA")
    reason = None if wish == "0" else missing_for_cuda()
    if wish == "1" and reason:
        sys.exit(f"conv1d_ext cannot be built with CUDA kernels (CONV1D_EXT_CUDA=1): {reason}")
    if reason and torch.version.cuda:
        print(f"conv1d_ext is built without CUDA kernels: {reason}", file=sys.stderr)
    return wish != "0" and reason is None


def cuda_architectures() -> str:
    """As nvcc names them: machine code as sm_90, PTX as compute_90."""
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        known = nvcc("--list-gpu-code").split()
        chosen = [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch.replace('.', '')}" in known]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(chosen) + "+PTX"
    names = [flag.rpartition("code=")[2] for flag in cpp_extension._get_cuda_arch_flags()]
    return " ".join(sorted(names, key=lambda name: (name[0] == "c", len(name), name)))


class BuildWithIsaFlags(BuildExtension):
    """BuildExtension gives all sources the same flags: compile the ISA files first, each with its own."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:  # setuptools would compile in a temporary directory, all of it, each time
            self.build_temp = "build/editable"

    def build_extensions(self) -> None:
        check_compiler()
        super().build_extensions()

    def build_extension(self, ext: CppExtension) -> None:
        def compile_apart(source: str, include_dirs: list[str], macros: list[tuple], cxx_flags: list[str]) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=f"{self.build_temp}/{Path(source).stem}",  # a ninja file of its own
                include_dirs=include_dirs,
                macros=macros,
                extra_postargs={"cxx": [*COMPILE_FLAGS, *cxx_flags], "nvcc": NVCC_FLAGS},
                depends=ext.depends,
            )

        no_torch = [str(ROOT / "csrc")]  # kernel files do not know it
        jobs = [
            (f"csrc/cpu/isa_{isa}.cpp", no_torch, [], [KERNEL_FLAG, *flags.split()]) for isa, flags in ISA_FLAGS.items()
        ]
        if CUDA:
            jobs += [(source, no_torch, [], []) for source in cuda_sources()]
            macros = [("CONV1D_EXT_CUDA_ARCHITECTURES", f'"{cuda_architectures()}"')]
            jobs.append(("csrc/cuda/conv1d_cuda.cpp", ext.include_dirs, macros, []))
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            ext.extra_objects += chain.from_iterable(pool.map(lambda job: compile_apart(*job), jobs))
        super().build_extension(ext)


def check_compiler() -> None:
    """Exits with one line where torch's headers could not be compiled anyway, rather than with pages of errors."""
    command = [get_cxx_compiler(), "-std=c++20", "-fopenmp", f"-I{sysconfig.get_path('include')}", "-fsyntax-only"]
    probe = "#include <Python.h>\n#include <concepts>\n#include <omp.h>\n"
    try:
        subprocess.run([*command, "-xc++", "-"], input=probe, text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[0]
        sys.exit(f"conv1d_ext needs a C++20 compiler (g++ 11 or newer) with OpenMP, and Python's headers: {reason}")


def sources() -> list[str]:
    paths = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    return sorted(str(p.relative_to(ROOT)) for p in paths if not p.name.startswith("isa_"))


def cuda_sources() -> list[str]:
    """The kernels, and what plans and launches them."""
    paths = [p for p in ROOT.glob("csrc/cuda/*") if p.suffix in (".cu", ".cpp") and p.name != "conv1d_cuda.cpp"]
    return sorted(str(p.relative_to(ROOT)) for p in paths)


def cuda_settings() -> dict[str, list[str]]:
    """What CUDAExtension would add, but libtorch_cuda, of which nothing is used. Headers may be the toolkit's or those
    of nvidia's packages beside torch. At run time the libraries are those that torch has loaded, wherever they are."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    headers = [*packages.glob("cu[0-9]*/include"), *packages.glob("cuda_runtime/include")]
    return {
        "include_dirs": [*cpp_extension.include_paths("cuda"), *map(str, headers)],
        "library_dirs": cpp_extension.library_paths("cuda"),
        "libraries": ["c10_cuda", "cudart"],
    }


CUDA = builds_cuda()
settings = cuda_settings() if CUDA else {"include_dirs": []}
setup(
    # The C++ interface of torch changes with every minor version: a binary works with the one it was built against.
    install_requires=["torch=={}.{}.*".format(*torch.__version__.split("."))],
    ext_modules=[
        CppExtension(
            "conv1d_ext._C",
            sources(),
            **settings | {"include_dirs": [str(ROOT / "csrc"), *settings["include_dirs"]]},
            depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*h")),
            extra_compile_args={"cxx": COMPILE_FLAGS},
            extra_link_args=LINK_FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildWithIsaFlags},
)
