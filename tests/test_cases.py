"""The C++ tests run the shapes of cases.py too: `python tests/test_cases.py` writes them down for the compiler."""

from pathlib import Path

from cases import CASES, Case

CPP_CASES = Path(__file__).parent / "cpp/cases.inc"


def cpp_row(case: Case) -> str:
    shape = [case.batch, case.in_channels, case.in_length, case.out_channels, case.kernel_size]
    geometry = [case.stride, *case.padding, case.dilation, case.groups, f"PaddingMode::k{case.padding_mode.title()}"]
    return f"{{{', '.join(map(str, shape + geometry))}}},\n"


def cpp_rows() -> str:
    return "// Written by tests/test_cases.py.\n" + "".join(map(cpp_row, CASES))


def test_cpp_tests_run_the_same_cases() -> None:
    assert CPP_CASES.read_text() == cpp_rows(), f"run {Path(__file__).name} to bring {CPP_CASES.name} up to date"


if __name__ == "__main__":
    CPP_CASES.write_text(cpp_rows())
