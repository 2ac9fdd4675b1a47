"""Row J8 for processes that die: when a save is killed, the old image is there or the new one."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import PAGE
from snapshots import files_in, image_of

import pgalloc
from pgalloc import FileRange, MemoryFile, testing
from pgalloc.testing import FaultPlan

KILLS = int(os.environ.get("PGALLOC_KILLS", "40"))
SPAN = 4 << 20

# What a save to a path cannot do without.
NECESSARY = {"open", "lseek", "pread", "pwrite", "fsync", "link_descriptor", "rename", "close"}


def in_child(work: Callable[[], None]) -> int:
    """The process that does the work; exit status 0 says that it came to its end."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(30)  # no hang outlives this
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def ending(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def make(letter: bytes) -> MemoryFile:
    """A file with three extents, two of which begin in the middle of what is used."""
    mf = MemoryFile(restore_id="killed")
    range_ = mf.allocate_range(3 * SPAN)
    view = mf.map_range(range_)
    for start, pages in ((0, 2), (SPAN + PAGE, 1), (2 * SPAN + 5 * PAGE, 3)):
        view[start : start + pages * PAGE] = letter * (pages * PAGE)
    return mf


def image_with(letter: bytes, compression: str | None) -> bytes:
    with make(letter) as mf:
        return image_of(mf, compression=compression)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_killed_at_every_system_call(tmp_path: Path, compression: str | None) -> None:
    old, new = (image_with(letter, compression) for letter in (b"o", b"n"))
    assert old != new
    target = tmp_path / "image"

    def save_and_die(name: str, number: int) -> None:
        mf = make(b"n")
        with FaultPlan(name, first=number, kill=True):
            mf.save(target, compression=compression)

    killed: dict[str, int] = {}
    seen = set()
    for name in testing.syscall_names():
        for number in range(1, 500):
            target.write_bytes(old)
            status = ending(in_child(lambda: save_and_die(name, number)))  # noqa: B023
            assert status in (0, -signal.SIGKILL), (name, number)
            pgalloc.verify_image(target)
            found = target.read_bytes()
            assert found in (old, new), (name, number)
            left = files_in(tmp_path) - {"image"}
            if status == 0:
                assert found == new
                assert left == set()
                break
            killed[name] = number
            seen.add(found == new)
            _check_leftovers(tmp_path, name, left, new)
    assert killed.keys() >= NECESSARY
    assert seen == {False, True}


def _check_leftovers(folder: Path, name: str, left: set[str], new: bytes) -> None:
    """Between getting a name and taking its place, the new image is there under a temporary one.

    This is the only moment when a crash leaves something behind. (Where the file system has no
    unnamed files, the temporary file has its name all the time.)
    """
    assert len(left) == (name == "rename"), (name, left)
    for temporary in left:
        assert temporary.startswith(".image.")
        assert temporary.endswith(".tmp")
        assert (folder / temporary).read_bytes() == new
        (folder / temporary).unlink()


PAGES = 600  # of the file that is saved without end


def save_for_ever(target: Path, ready: int) -> None:
    """Each image holds a number in all its pages, the next one in the next image."""
    mf = MemoryFile()
    range_ = mf.allocate_range(PAGES * PAGE)
    view = np.frombuffer(mf.map_range(range_), dtype=np.uint64)
    for number in itertools.count(1):
        view[:] = number
        mf.save(target, compression=[None, "zstd"][number % 2])
        if number == 1:
            os.write(ready, b"1")


def test_killed_at_random(tmp_path: Path) -> None:
    """Must show: kill -9 during a save, 200 times (PGALLOC_KILLS=200); verify always succeeds."""
    target = tmp_path / "image"
    rng = random.Random(KILLS)
    numbers = []
    for _ in range(KILLS):
        reader, writer = os.pipe()
        pid = in_child(lambda: save_for_ever(target, writer))  # noqa: B023
        os.close(writer)
        assert os.read(reader, 1) == b"1"
        os.close(reader)
        time.sleep(rng.random() * 0.03)  # time: the load: when it is killed
        os.kill(pid, signal.SIGKILL)
        assert ending(pid) == -signal.SIGKILL
        pgalloc.verify_image(target)
        with MemoryFile.restore(target) as restored:
            pages = np.frombuffer(restored.map_range(FileRange(0, PAGES * PAGE)), dtype=np.uint64)
            numbers.append(int(pages[0]))
            assert (pages == pages[0]).all()
            del pages
    assert max(numbers) > 1
    temporary = files_in(tmp_path) - {"image"}
    assert all(name.startswith(".image.") for name in temporary)
    assert len(temporary) <= KILLS
