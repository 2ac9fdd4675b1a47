"""Save 1 GiB and restore it: half random, a quarter zero but committed, a quarter untouched.

The patterns differ in how the three lie: page by page, or in runs of 64 pages. Images go to a file
system in memory, so that no disk is measured. The limit copies the half that is not zero with
sendfile(), which moves bytes between files without showing them to anybody.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy

from benchmarks.measure import GIB, MIB, Case, Sample, seconds_of
from pgalloc import PAGE_SIZE, Allocation, FileRange, MemoryFile

PATTERNS = {"interleaved": 1, "runs": 64}
_SHM = Path("/dev/shm")


@contextmanager
def image_folder() -> Iterator[Path]:
    """A folder for images, in memory if there is such a file system."""
    folder = Path(tempfile.mkdtemp(prefix="pgalloc-", dir=_SHM if _SHM.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@lru_cache(maxsize=1)
def _random_pages() -> numpy.ndarray[tuple[int, int], numpy.dtype[numpy.uint8]]:
    pages = 64 * MIB // PAGE_SIZE
    return numpy.random.default_rng(1).integers(0, 256, (pages, PAGE_SIZE), dtype=numpy.uint8)


def fill(allocation: Allocation, run: int) -> None:
    """Of four runs of pages, two random ones, one of zeros, one that is not touched."""
    pages = numpy.frombuffer(allocation.view(), dtype=numpy.uint8).reshape(-1, PAGE_SIZE)
    random = _random_pages()
    block = len(random) * 2  # of which half is random
    kind = (numpy.arange(block) // run) % 4
    for first in range(0, len(pages), block):
        part = pages[first : first + block]
        part[kind[: len(part)] < 2] = random[: len(part) // 2]
        part[kind[: len(part)] == 2] = 0


@contextmanager
def _saved(size: int, run: int) -> Iterator[tuple[MemoryFile, Path]]:
    with image_folder() as folder, MemoryFile() as file, file.allocate(size) as allocation:
        fill(allocation, run)
        image = folder / "image"
        file.save(image)
        yield file, image


def _save(pattern: str) -> Sample:
    with _saved(GIB, PATTERNS[pattern]) as (file, image):
        again = image.with_name("again")
        return Sample(
            f"save_{pattern}", "python", 1, seconds_of(lambda: file.save(again)), GIB // 2
        )


def _restore(pattern: str) -> Sample:
    with _saved(GIB, PATTERNS[pattern]) as (file, image):
        file.close()
        made: list[MemoryFile] = []
        seconds = seconds_of(lambda: made.append(MemoryFile.restore(image)))
        made[0].close()
    return Sample(f"restore_{pattern}", "python", 1, seconds, GIB // 2)


def _first_byte(gibibytes: int) -> Sample:
    with _saved(gibibytes * GIB, PATTERNS["runs"]) as (file, image):
        size = gibibytes * GIB
        file.close()
        page = FileRange(size // 2, size // 2 + PAGE_SIZE)
        made: list[MemoryFile] = []

        def work() -> None:
            made.append(MemoryFile.restore(image, background=True))
            bytes(made[0].map_range(page, "r")[:1])

        seconds = seconds_of(work)
        made[0].close()
    return Sample(f"first_byte_{gibibytes}g", "python", 1, seconds, size // 2)


def _copy(workload: str, source_is_memory: bool) -> Sample:
    """512 MiB between a memfd and a file."""
    size = GIB // 2
    memory = os.memfd_create("benchmark")
    with image_folder() as folder, open(folder / "file", "w+b", buffering=0) as file:
        source, target = (memory, file.fileno()) if source_is_memory else (file.fileno(), memory)
        for offset in range(0, size, 64 * MIB):
            os.pwrite(source, _random_pages().data, offset)
        seconds = seconds_of(lambda: _sendfile_all(target, source, size))
    os.close(memory)
    return Sample(workload, "sendfile", 1, seconds, size)


def _sendfile_all(target: int, source: int, size: int) -> None:
    sent = 0
    while sent < size:
        sent += os.sendfile(target, source, sent, size - sent)


def _numpy_save(pattern: str) -> Sample:
    """All of it, as numpy writes an array: the peer has no idea of zeros."""
    with image_folder() as folder, MemoryFile() as file, file.allocate(GIB) as allocation:
        fill(allocation, PATTERNS[pattern])
        array = numpy.frombuffer(allocation.view(), dtype=numpy.uint8)
        seconds = seconds_of(partial(numpy.save, folder / "array.npy", array))
    return Sample(f"save_{pattern}", "numpy.save", 1, seconds, GIB)


def _numpy_load(pattern: str) -> Sample:
    with image_folder() as folder, MemoryFile() as file, file.allocate(GIB) as allocation:
        fill(allocation, PATTERNS[pattern])
        numpy.save(folder / "array.npy", numpy.frombuffer(allocation.view(), dtype=numpy.uint8))
        file.close()
        seconds = seconds_of(lambda: numpy.load(folder / "array.npy"))
    return Sample(f"restore_{pattern}", "numpy.load", 1, seconds, GIB)


def _cases(pattern: str) -> list[Case]:
    works: list[tuple[str, str, Callable[[], Sample]]] = [
        (f"save_{pattern}", "python", lambda: _save(pattern)),
        (f"save_{pattern}", "sendfile", lambda: _copy(f"save_{pattern}", True)),
        (f"save_{pattern}", "numpy.save", lambda: _numpy_save(pattern)),
        (f"restore_{pattern}", "python", lambda: _restore(pattern)),
        (f"restore_{pattern}", "sendfile", lambda: _copy(f"restore_{pattern}", False)),
        (f"restore_{pattern}", "numpy.load", lambda: _numpy_load(pattern)),
    ]
    return [Case(*work) for work in works]


CASES = [
    *(case for pattern in PATTERNS for case in _cases(pattern)),
    Case("first_byte_1g", "python", lambda: _first_byte(1)),
    Case("first_byte_8g", "python", lambda: _first_byte(8)),
]
