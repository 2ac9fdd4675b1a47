"""A pytest plugin: which mutants each test reaches, and how long it takes."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_BYTES = 4096
_folder = Path(os.environ["PGALLOC_MUTANTS_FOLDER"])
_worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
_path = _folder / f"reached.{_worker}"
_path.write_bytes(bytes(_BYTES))
# Before anything imports pgalloc.
os.environ["PGALLOC_MUTANTS_REACHED"] = str(_path)
with _path.open("r+b") as _file:
    _reached = mmap.mmap(_file.fileno(), _BYTES)


def _numbers() -> list[int]:
    """What was reached since the last call."""
    numbers = [number for number, byte in enumerate(_reached[:]) if byte]
    _reached[:] = bytes(_BYTES)
    return numbers


def _write(line: dict[str, Any]) -> None:
    with (_folder / f"tests.{_worker}.jsonl").open("a") as out:
        out.write(json.dumps(line) + "\n")


def pytest_collection_finish() -> None:
    """Write down what was reached before the first test: by imports."""
    _write({"imported": _numbers()})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write down one test: what was reached since the last one ended."""
    begin = time.monotonic()
    try:
        return (yield)
    finally:
        _write({"test": item.nodeid, "s": time.monotonic() - begin, "reached": _numbers()})
