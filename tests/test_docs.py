"""The README and docs/ hold: code blocks run as they stand, files that they name exist."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that take long or change the machine, and what is run in their place.
IN_PLACE_OF = {
    "make demo": "make --dry-run demo",
    "make test": "make --dry-run test",
    # The torch of the Makefile. The other two are the build's requirements, which the next line finds.
    "pip install torch==2.13.0 setuptools ninja": "grep -qx 'TORCH ?= 2.13.0' Makefile",
    "pip install --no-build-isolation .": "pip install --no-build-isolation --no-deps --no-index --dry-run .",
    "python -m build --no-isolation": ":",  # by tests/test_packaging.py, with `make long-test`
}


def run_commands(example: Example) -> None:
    commands = [line.partition("#")[0].strip() for line in example.parsed.splitlines()]
    run("\n".join(IN_PLACE_OF.get(command, command) for command in commands))


@cache  # pages repeat each other
def run(script: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Without what `make test` tells its children.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(["bash", "-euc", script], cwd=ROOT, env=environment | {"PATH": path}, check=True)


PARSER = Sybil([PythonCodeBlockParser(), CodeBlockParser("sh", run_commands)])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_run(page: Path) -> None:
    """In order, the Python ones in one namespace."""
    for example in PARSER.parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_block_is_of_a_language_that_runs(page: Path) -> None:
    opened = re.findall(r"^ *```(.*)", page.read_text(), re.MULTILINE)[::2]
    assert set(opened) <= {"python", "sh"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / target for target in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    spans = [ROOT / span for span in re.findall(r"`([\w./]+/[\w./*]+)`", text)]
    assert [path for path in links + spans if not list(path.parent.glob(path.name))] == []


def test_messages_that_are_explained_exist() -> None:
    page = (ROOT / "docs/building.md").read_text()
    explained = re.findall(r"^\| `(.+?)`", page[page.index("## When it fails") :], re.MULTILINE)
    sources = "".join((ROOT / file).read_text() for file in ("setup.py", "conv1d_ext/_load.py", "conv1d_ext/config.py"))
    parts = [part for message in explained for part in message.split("...")]
    assert len(explained) == 6
    assert [part for part in parts if part not in sources] == []
