"""What the extension may do to the process that loads it: its binary is hardened, shows one symbol, and never reaches
for files, the network or the environment."""

import re
import subprocess
import sys
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from conv1d_ext import _C

ROOT = Path(__file__).parents[1]
EXECUTABLE, WRITABLE = 1, 2


def symbols(path: str | Path) -> tuple[set[str], set[str]]:
    """Those that a library exports, and those that it imports."""
    with open(path, "rb") as file:
        table = list(ELFFile(file).get_section_by_name(".dynsym").iter_symbols())[1:]
    exported = {s.name for s in table if s["st_shndx"] != "SHN_UNDEF"}
    return exported, {s.name for s in table} - exported


def check_hardened(path: str | Path) -> None:
    with open(path, "rb") as file:
        elf = ELFFile(file)
        segments = {s["p_type"]: s["p_flags"] for s in elf.iter_segments()}
        loaded = [s["p_flags"] for s in elf.iter_segments("PT_LOAD")]
        dynamic = next(s for s in elf.iter_sections() if isinstance(s, DynamicSection))
        tags = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
    assert not segments["PT_GNU_STACK"] & EXECUTABLE
    assert not any(flags & EXECUTABLE and flags & WRITABLE for flags in loaded)
    assert "PT_GNU_RELRO" in segments
    assert tags.get("DT_FLAGS_1", 0) & 1, "DF_1_NOW: symbols are bound before the table becomes read-only"
    assert "DT_TEXTREL" not in tags
    assert "__stack_chk_fail" in symbols(path)[1]


def test_binary_is_hardened() -> None:
    check_hardened(_C.__file__)


def test_libc_calls_are_fortified() -> None:
    """Where they have a fortified form: the one that is always there writes a warning."""
    _, imported = symbols(_C.__file__)
    assert "__fprintf_chk" in imported
    assert "fprintf" not in imported


def test_exports_its_entry_alone() -> None:
    assert symbols(_C.__file__)[0] == {"PyInit__C"}


FORBIDDEN = re.compile(
    r"(f|fre|p|fd)?open(at|dir)?(64)?|creat(64)?|f?read|f?write|mkstemp\w*|unlink(at)?|rename(at)?|"
    r"socket(pair)?|connect|bind|listen|accept4?|send\w*|recv\w*|getaddrinfo|gethostby\w+|"
    r"system|v?fork|exec[vl]\w*|posix_spawn\w*|dl(m?open|sym)|syscall|ptrace|"
    r"setenv|putenv|unsetenv|secure_getenv|environ|_Z\w*(filebuf|[io]?fstream)\w*"
)


def test_imports_nothing_that_reaches_outside() -> None:
    _, imported = symbols(_C.__file__)
    assert {"malloc", "getenv"} <= imported
    assert not list(filter(FORBIDDEN.fullmatch, imported))


def test_never_ends_the_process() -> None:
    """Nor does nvcc make it: of a device's function that host code calls it makes a call of exit."""
    _, imported = symbols(_C.__file__)
    assert not {"exit", "_exit", "quick_exit"} & imported


def test_reads_no_environment_variable_but_the_documented_one() -> None:
    reading = r"(getenv\(|environ\b(?!ment)\S*?[(\[])\W*(\w*)"
    sources = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("conv1d_ext/*.py")]
    found = [name for path in sources for _, name in re.findall(reading, path.read_text())]
    assert found
    assert set(found) == {"CONV1D_EXT_ISA"}
    assert "CONV1D_EXT_ISA" in (ROOT / "docs/behaviour.md").read_text()


WATCHED = """
import sys
import torch

outside = []
def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so", ".zip", "entry_points.txt")):
        outside.append((event, args[0]))
    if event.split(".")[0] in {"socket", "subprocess", "urllib", "http", "ftplib", "shutil", "tempfile", "ctypes"} or (
        event in {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.putenv", "os.unsetenv", "os.remove"}
    ):
        outside.append((event, args))

sys.addaudithook(watch)
import conv1d_ext

layer = conv1d_ext.convert(torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect")))
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.complex64):
    layer.to(dtype)(torch.randn(2, 4, 50, dtype=dtype)).abs().sum().backward()
with conv1d_ext.patch_torch():
    torch.nn.functional.conv1d(torch.randn(1, 4, 9), torch.randn(2, 4, 3))
layer = conv1d_ext.Conv1d(4, 6, 3)
torch.func.vmap(layer)(torch.randn(3, 4, 50))
conv1d_ext.explain(layer, (1, 4, 50))
assert not outside, outside
"""


def test_opens_no_file_and_no_connection() -> None:
    """Python's side of it, by its audit events: what imports need apart, nothing is opened or started."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", WATCHED], check=True)
