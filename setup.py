"""Builds conv1d_ext._C with torch's compiler settings; one object file per instruction set for the kernels."""

import os
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
from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

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
        def compile_isa(isa: str) -> list[str]:
            return self.compiler.compile(
                [f"csrc/cpu/isa_{isa}.cpp"],
                output_dir=f"{self.build_temp}/{isa}",  # a ninja file of its own
                include_dirs=[str(ROOT / "csrc")],  # no torch: kernel files do not know it
                extra_postargs={"cxx": [*COMPILE_FLAGS, KERNEL_FLAG, *ISA_FLAGS[isa].split()]},
                depends=ext.depends,
            )

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            ext.extra_objects += chain.from_iterable(pool.map(compile_isa, ISA_FLAGS))
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


setup(
    # The C++ interface of torch changes with every minor version: a binary works with the one it was built against.
    install_requires=["torch=={}.{}.*".format(*torch.__version__.split("."))],
    ext_modules=[
        CppExtension(
            "conv1d_ext._C",
            sources(),
            include_dirs=[str(ROOT / "csrc")],
            depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.h")),
            extra_compile_args={"cxx": COMPILE_FLAGS},
            extra_link_args=LINK_FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildWithIsaFlags},
)
