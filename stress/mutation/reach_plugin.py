"""A pytest plugin: which mutants each test reaches, and how long it takes."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write down one test: what was reached since the last one ended."""
    begin = time.monotonic()
    try:
        return (yield)
    finally:
        numbers = [number for number, byte in enumerate(_reached[:]) if byte]
        _reached[:] = bytes(_BYTES)
        line = {"test": item.nodeid, "s": time.monotonic() - begin, "reached": numbers}
        with (_folder / f"tests.{_worker}.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
