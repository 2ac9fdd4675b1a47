"""The core's tests in C++, a file at a time: tests/native, which `pip install -e` builds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build/native_tests"
SOURCES = (ROOT / "tests/native").glob("*_test.cc")
UNITS = sorted(path.name.removesuffix("_test.cc") for path in SOURCES)


@pytest.fixture(scope="module")
def native_tests() -> Path:
    """The program, younger than what it is made of."""
    assert PROGRAM.exists(), f"{PROGRAM} is not there: pip install -e '.[test]'"
    # conftest.py looks after csrc.
    newest = max((ROOT / "tests/native").iterdir(), key=lambda path: path.stat().st_mtime)
    assert newest.stat().st_mtime <= PROGRAM.stat().st_mtime, f"{newest} is newer: install again"
    return PROGRAM


@pytest.mark.parametrize("unit", UNITS)
def test_unit(native_tests: Path, unit: str) -> None:
    done = subprocess.run([native_tests, f"{unit}."], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_belongs_to_a_unit(native_tests: Path) -> None:
    listed = subprocess.run([native_tests, "--list"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert len(names) == len(set(names))
    assert {name.partition(".")[0] for name in names} == set(UNITS)


def test_a_part_that_names_no_test_fails(native_tests: Path) -> None:
    assert subprocess.run([native_tests, "no such test"], capture_output=True).returncode == 1
