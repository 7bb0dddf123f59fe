"""show_config and ``python -m conv1d_ext``."""

import os
import subprocess
import sys

import pytest
import torch

import conv1d_ext
from conv1d_ext import _C, config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shows_the_configuration_and_passes(capsys):
    assert conv1d_ext.show_config()
    text = capsys.readouterr().out
    for word in (conv1d_ext.__version__, torch.__version__, _C.isa(), "threads", "OpenMP", "CUDA", "passed"):
        assert word in text


def test_passes_on_every_instruction_set(isa, capsys):
    assert conv1d_ext.show_config()
    assert f"{isa} in use" in capsys.readouterr().out


def test_fails_where_a_result_is_wrong(monkeypatch, capsys):
    def wrong(input, weight, bias, *geometry):
        return right(input, weight * (1 + 1e-3), bias, *geometry)

    right = config.conv1d_padded
    monkeypatch.setattr(config, "conv1d_padded", wrong)
    assert not conv1d_ext.show_config()
    assert "FAILED" in capsys.readouterr().out


def test_leaves_random_numbers_and_grad_mode_alone():
    state = torch.get_rng_state()
    with torch.no_grad():
        assert conv1d_ext.show_config()
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_runs_as_a_module():
    environment = {**os.environ, "CONV1D_EXT_ISA": "portable", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "conv1d_ext"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "portable (CONV1D_EXT_ISA=portable) in use" in result.stdout
    assert "passed" in result.stdout


def test_one_openmp_runtime_is_loaded():
    assert len(config._openmp_runtimes()) == 1


def test_set_isa_rejects_unknown_names():
    before = _C.isa()
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'"):
        _C.set_isa("mmx")
    assert _C.isa() == before


def test_portable_kernels_are_always_there():
    assert "portable" in _C.supported_isas()
    assert set(_C.supported_isas()) <= set(_C.build_info()["isas"])
