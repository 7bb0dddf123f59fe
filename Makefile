# Every target does its own set-up: a virtual environment, pinned packages, the compiled extension. Stamp files in the
# environment say what is done; a change of the sources or of TORCH does the rest again.
#
#   make demo        trains a CNN on real data with torch's Conv1d and with this one, side by side
#   make test        the tests                         make long-test   those that take longer: builds, installs
#   make cpp-test    the kernels' C++ tests under AddressSanitizer and UBSan, and their threads under ThreadSanitizer
#   make asan-test   the extension under AddressSanitizer, with those of the tests that meet memory
#   make cuda-test   the CUDA kernels: compiled, what the compiler reports of them, and on a GPU, if there is one, run
#   make bench       the benchmarks; ARGS="--help" lists what there is to choose
#   make lint        ruff, mypy, clang-format and -tidy   make format   lets ruff and clang-format mend what they can
#   make clean       removes all that the above have made
#
# PYTHON=python3.12 chooses the interpreter, TORCH=2.14.1 the torch, VENV=dir the environment.

TORCH ?= 2.13.0
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
CXX ?= c++
BIN := $(VENV)/bin
DONE := $(VENV)/.done
export CXX
# For the ninja and cmake in there.
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := setup.py pyproject.toml conv1d_ext/__init__.py $(wildcard csrc/*.* csrc/*/*.*)
CPP_FILES = $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/cuda/*.cuh csrc/cuda/*.cu tests/cpp/*.h \
	tests/cpp/*.cpp tests/emulator/*.h tests/emulator/*.cuh tests/emulator/*.cpp examples/cpp/*.cpp)

.PHONY: demo test long-test cpp-test asan-test cuda-test cuda-check bench lint format clean
.DELETE_ON_ERROR:

demo: $(DONE)-extension $(DONE)-demo
	$(BIN)/python examples/train_ucr.py

test: $(DONE)-extension $(DONE)-test
	$(BIN)/python -m pytest

# The tests of a file stay together: what it builds is built once.
PARALLEL := --numprocesses=auto --dist=loadfile

long-test: $(DONE)-extension $(DONE)-test $(DONE)-cpp
	$(BIN)/python -m pytest -m long $(PARALLEL)

cpp-test: $(DONE)-build $(DONE)-cpp
	cmake --workflow --preset sanitize
	cmake --workflow --preset threads

# Python itself knows nothing of AddressSanitizer, so its runtime must be there before all other libraries, and so must
# the C++ library, whose functions it replaces. What Python and torch leave at exit are no leaks of the extension's. The
# kernels of the other instruction sets are cpp-test's, under AddressSanitizer as well.
ASAN := -fsanitize=address --param asan-instrumentation-with-call-threshold=0
ASAN_PYTHON = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONSAFEPATH=1 PYTHONPATH=build/asan/lib $(BIN)/python
ASAN_TESTS := kernels ops errors functional modules autograd func autocast nonfinite random fuzz plan fft toom_cook amx

asan-test: $(DONE)-build $(DONE)-test
	@echo "Compiling the extension with AddressSanitizer: a few minutes."
	@mkdir -p build/asan
	@CFLAGS="$(ASAN)" CXXFLAGS="$(ASAN)" LDFLAGS=-fsanitize=address $(BIN)/python setup.py -q \
		build --build-base build/asan --build-lib build/asan/lib >build/asan/log 2>&1 || { cat build/asan/log; exit 1; }
	@$(ASAN_PYTHON) -c 'import conv1d_ext; assert "build/asan" in conv1d_ext.__file__, conv1d_ext.__file__'
	$(ASAN_PYTHON) -m pytest $(ASAN_TESTS:%=tests/test_%.py) -k "not portable and not avx2" $(PARALLEL)

# In an environment of its own, with a CUDA build of torch, which is why it is not a part of `make test`. The tests are
# those of the operators; on one instruction set, since `make test` runs them on all.
NVCC := $(shell command -v $(if $(CUDA_HOME),$(CUDA_HOME)/bin/)nvcc)
CUDA_PYTHON = PYTHONSAFEPATH=1 PYTHONPATH=build/cuda/lib $(BIN)/python
CUDA_TESTS := kernels ops functional modules autograd fallback config explain hardening errors cuda_build

ifeq ($(NVCC),)
cuda-test:
	@echo "NOT CHECKED: the CUDA kernels. There is no nvcc, neither on the PATH nor in CUDA_HOME."
else
cuda-test:
	$(MAKE) cuda-check VENV=.venv-cuda TORCH=2.14.1
endif

cuda-check: $(DONE)-build $(DONE)-pytest
	@echo "Compiling the extension with $(NVCC): a few minutes."
	@mkdir -p build/cuda/nvcc
	@CONV1D_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0 9.0" \
		NVCC_APPEND_FLAGS="-Xptxas=-v -keep -keep-dir=$(CURDIR)/build/cuda/nvcc" $(BIN)/python setup.py -q \
		build --build-base build/cuda --build-lib build/cuda/lib >>build/cuda/log 2>&1 || { cat build/cuda/log; exit 1; }
	$(BIN)/python tests/ptxas_report.py build/cuda/log build/cuda/nvcc
	@cd / && PYTHONPATH=$(CURDIR)/build/cuda/lib $(CURDIR)/$(BIN)/python -m conv1d_ext
	$(CUDA_PYTHON) -m pytest $(CUDA_TESTS:%=tests/test_%.py) tests/cuda -k "not portable and not avx512" -rs

bench: $(DONE)-extension $(DONE)-bench
	$(BIN)/python -m benchmarks $(ARGS)

# With the instructions of every instruction set. OpenMP's header is the compiler's, after clang's own.
TIDY_FLAGS = -std=c++20 -fopenmp -Icsrc -DTORCH_EXTENSION_NAME=_C $(shell $(BIN)/python -c 'import sysconfig, torch; \
	from torch.utils.cpp_extension import include_paths; print(*("-isystem" + path for path in \
	[*include_paths(), sysconfig.get_path("include")]))') -idirafter $(dir $(shell $(CXX) -print-file-name=include/omp.h)) \
	$(if $(filter x86_64,$(shell uname -m)),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mamx-tile -mamx-bf16 -mfma -mf16c)

# The CUDA part needs headers of the toolkit's. tests/emulator is CUDA as well, of a kind.
CUDA_INCLUDE := $(patsubst %/cuda_runtime_api.h,%,$(wildcard $(or $(CUDA_HOME),/usr/local/cuda)/include/cuda_runtime_api.h))
TIDY_FLAGS += $(CUDA_INCLUDE:%=-isystem%) -DCONV1D_EXT_CUDA_ARCHITECTURES='"sm_90"' \
	-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE
TIDY_FILES = $(filter-out tests/emulator/% $(if $(CUDA_INCLUDE),,csrc/cuda/%),$(filter %.cpp,$(CPP_FILES)))

lint: $(DONE)-lint $(DONE)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	@echo "clang-tidy: a few minutes"
	@$(if $(CUDA_INCLUDE),,echo "NOT CHECKED: csrc/cuda, for which there are no headers of CUDA here.")
	@printf '%s\n' $(TIDY_FILES) | xargs -P $$(nproc) -I@ $(BIN)/clang-tidy --quiet @ -- $(TIDY_FLAGS)

format: $(DONE)-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf $(VENV) .venv-cuda build dist *.egg-info conv1d_ext/*.so

# What a machine may lack, each said in one line before anything is downloaded. Debian packs these apart from Python.
define PROBE
#include <Python.h>
#include <concepts>
#include <omp.h>
endef
export PROBE
HAS_CXX20 = echo "$$PROBE" | $(CXX) -std=c++20 -fopenmp -I"$$($(PYTHON) -c \
	'import sysconfig; print(sysconfig.get_path("include"))')" -fsyntax-only -xc++ -

$(DONE)-python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Missing: Python 3.10 or newer. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Missing: the venv module of $(PYTHON). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(HAS_CXX20) 2>/dev/null || { $(HAS_CXX20) 2>&1 | grep -m 1 . ; echo "Missing (see above): a C++20 compiler" \
		"with OpenMP, g++ 11 or newer, and Python.h. On Debian and Ubuntu: apt-get install g++ python3-dev"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(DONE)-torch-$(TORCH): $(DONE)-python
	@rm -f $(DONE)-torch-*
	$(BIN)/pip install torch==$(TORCH)
	@touch $@

$(addprefix $(DONE)-,build pytest test bench demo lint cpp): $(DONE)-%: requirements/%.txt $(DONE)-torch-$(TORCH)
	$(BIN)/pip install --quiet -r $<
	@touch $@

$(DONE)-extension: $(SOURCES) $(DONE)-build
	@echo "Compiling the extension: a few minutes the first time, after that only what has changed."
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@
