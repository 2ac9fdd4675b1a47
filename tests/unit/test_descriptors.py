"""Descriptors that others close, standard streams that are not there, limits, full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE
from held_call import HeldCall
from waiting import environment, join

import pgalloc
from pgalloc import AllocationMode, Cache, MemoryFile, testing

MIB = 1 << 20


class Precious:
    """A file of the user's that has got the number of one of pgalloc's descriptors."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        path.write_bytes(b"P" * (4 * MIB))
        own = os.open(path, os.O_RDWR)
        os.dup2(own, fd)
        os.close(own)

    def check(self) -> None:
        assert self.path.read_bytes() == b"P" * (4 * MIB), "it was written to"
        os.fstat(self.fd)  # it was not closed


def run(program: str, *, before: str = "") -> str:
    """What a program of its own says, started by a shell that does something ``before``."""
    done = subprocess.run(
        ["bash", "-c", f'{before} exec "$0" -c "$1"', sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["memfd", "path"])
def memory_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryFile]:
    file = MemoryFile(tmp_path / "backing" if request.param == "path" else None)
    yield file
    with contextlib.suppress(OSError):
        file.close()


def test_a_number_that_is_another_files_by_now(memory_file: MemoryFile, tmp_path: Path) -> None:
    """What is mapped can be used and given back; nothing of the other file is touched."""
    in_memory = "memfd:" in os.readlink(f"/proc/self/fd/{memory_file.fileno()}")
    kept = memory_file.allocate(MIB)
    freed = memory_file.allocate(MIB)
    kept.view()[:] = b"x" * MIB
    freed.view()[:] = b"y" * MIB
    precious = Precious(tmp_path / "precious", memory_file.fileno())
    freed.release()
    assert memory_file.wait_for_reclaim(20)
    precious.check()
    assert bytes(kept.view()) == b"x" * MIB
    kept._write(0, b"z" * PAGE)
    assert bytes(kept.view()[: PAGE + 1]) == b"z" * PAGE + b"x"
    kept.decommit()
    assert bytes(kept.view()) == bytes(MIB)
    if in_memory:  # within what is there; on disk it would need blocks
        again = memory_file.allocate(MIB)
        again._write(0, b"w" * MIB)
        assert bytes(again.view()) == b"w" * MIB
        precious.check()
    with pytest.raises(OSError, match="closed from outside") as caught:
        memory_file.allocate(2 << 30)  # the file would have to grow
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="closed from outside"):
        memory_file.allocate(MIB, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    precious.check()
    testing.verify(memory_file)
    memory_file.close()
    precious.check()
    os.close(precious.fd)


def test_pages_that_are_not_mapped_yet_are_not_those_of_another_file(
    memory_file: MemoryFile, tmp_path: Path
) -> None:
    pages = memory_file.allocate(MIB)
    precious = Precious(tmp_path / "precious", memory_file.fileno())
    with pytest.raises(OSError, match="closed from outside"):
        pages.view()
    with pytest.raises(OSError, match="closed from outside"):
        pages._write(0, b"x")
    pages.release()
    memory_file.wait_for_reclaim(20)
    memory_file.close()
    precious.check()
    os.close(precious.fd)


def test_a_peer_gets_no_other_file(tmp_path: Path) -> None:
    """Neither to look at, nor to write to."""
    with MemoryFile() as file, file.allocate(PAGE) as pages:
        pages.view()[:4] = b"mine"
        with file.serve(str(tmp_path / "socket")):
            precious = Precious(tmp_path / "precious", file.fileno())
            program = (
                "import pgalloc, sys\n"
                f"file = pgalloc.connect({str(tmp_path / 'socket')!r})\n"
                "try: file.allocate(4096).view()\n"
                "except (OSError, pgalloc.SharingError) as error: print(error)\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                env=environment(),
            )
            assert "closed from outside" in done.stdout + done.stderr
            precious.check()
    precious.check()
    os.close(precious.fd)


def test_a_peers_own_descriptor(tmp_path: Path) -> None:
    program = f"""
import os, sys, pgalloc
owner = pgalloc.MemoryFile()
server = owner.serve({str(tmp_path / "socket")!r})
peer = pgalloc.connect({str(tmp_path / "socket")!r})
mapped, unmapped = peer.allocate(4096), peer.allocate(2 << 30)
mapped.view()[:4] = b"mine"
own = os.open({str(tmp_path / "precious")!r}, os.O_RDWR)
os.dup2(own, peer.fileno())
try: unmapped.view()
except OSError as error: print("closed from outside" in str(error))
print(bytes(mapped.view()[:4]))
fd = peer.fileno()
for pages in (mapped, unmapped): pages.release()
peer.close(); server.close(); owner.close()
os.fstat(fd)
os._exit(0)
"""
    path = tmp_path / "precious"
    path.write_bytes(b"P" * PAGE)
    said = run(program.replace("os._exit", "sys.stdout.flush(); os._exit"))
    assert said == "True\nb'mine'\n"
    assert path.read_bytes() == b"P" * PAGE


@pytest.mark.parametrize("closed", ["0<&-", "1>&2 2>&-", "0<&- 2>&-"])
def test_no_descriptor_is_a_standard_stream(closed: str, tmp_path: Path) -> None:
    program = f"""
import os
before = {{fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{{fd}}")}}
import pgalloc
file = pgalloc.MemoryFile()
on_disk = pgalloc.MemoryFile({str(tmp_path / "backing")!r})
cache = pgalloc.Cache("1M")
cache["k"] = b"v"
server = file.serve({str(tmp_path / "socket")!r})
peer = pgalloc.connect({str(tmp_path / "socket")!r})
pages = peer.allocate(4096)
pages.unpin()
after = {{fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{{fd}}")}}
open({str(tmp_path / "said")!r}, "w").write(str(after - before))
"""
    run(program, before=f"exec {closed};")
    assert (tmp_path / "said").read_text() == "set()"


def test_a_limit_on_the_size_of_files() -> None:
    program = """
import pgalloc
file = pgalloc.MemoryFile()
kept = [file.allocate(1 << 20) for _ in range(90)]
for pages in kept: pages.view()[:1] = b"x"
pgalloc.share([1]).release()
try: file.allocate(20 << 20)
except OSError as error: print("ulimit -f" in str(error) and "capacity=" in str(error))
file.allocate(4096)
top_down = pgalloc.MemoryFile().allocate(1 << 20, direction=pgalloc.Direction.TOP_DOWN)
top_down.view()[:1] = b"x"
small = pgalloc.MemoryFile(capacity=16 << 20)
cache = pgalloc.Cache("1M", file=small)
cache["k"] = b"v"
pgalloc.share([2], file=small).release()
"""
    assert run(program, before="ulimit -f 100000;") == "True\n"


def test_a_limit_on_addresses() -> None:
    program = """
import pgalloc
file = pgalloc.MemoryFile()
others = [pgalloc.Cache("1M"), pgalloc.share([1]), pgalloc.MemoryFile()]
rest = bytearray(2000 << 20)
try: pgalloc.MemoryFile(capacity=8 << 30)
except OSError as error: print("capacity=" in str(error))
small = pgalloc.MemoryFile(capacity=16 << 20)
cache = pgalloc.Cache("1M", file=small)
cache["k"] = b"v"
shared = pgalloc.share([2], file=small)
"""
    assert run(program, before="ulimit -v 4000000;") == "True\n"


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 16 MiB, in memory or on a disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if request.param == "ext4":
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(17 * MIB)
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)]
        if shutil.which(make[0]) is None:
            pytest.skip("no mkfs.ext4")
        subprocess.run(make, check=True)
        mount = ["mount", "-o", "loop", str(image), str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_file_system_is_an_error_when_pages_are_allocated(small_disk: Path) -> None:
    with MemoryFile(small_disk / "file") as file:
        kept = file.allocate(8 * MIB)
        kept.view()[:] = b"x" * (8 * MIB)
        with pytest.raises(OSError, match="No space left") as caught:
            file.allocate(12 * MIB)
        assert caught.value.errno == errno.ENOSPC
        assert file.wait_for_reclaim(20)
        more = file.allocate(7 * MIB)  # nothing of the failed one is left
        more.view()[:] = b"y" * (7 * MIB)
        assert bytes(kept.view()) == b"x" * (8 * MIB)
        with pytest.raises(OSError, match="No space left"):
            file.allocate(4 * MIB, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE)


def test_what_was_allocated_can_be_touched_in_a_full_file_system(small_disk: Path) -> None:
    """Its blocks are reserved: what comes later gets none of them."""
    with MemoryFile(small_disk / "file") as file:
        early = [file.allocate(MIB) for _ in range(8)]
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "other").write_bytes(bytes(12 * MIB))
        with pytest.raises(OSError, match="No space left"):
            file.allocate(8 * MIB)
        for part in early:
            part.view()[:] = b"x" * MIB


def test_what_was_freed_just_now_is_no_reason_to_refuse(small_disk: Path) -> None:
    """Its blocks are on their way back to the file system."""
    with MemoryFile(small_disk / "file") as file:
        kept: list[pgalloc.Allocation] = []
        with pytest.raises(OSError, match="No space left"):
            kept.extend(file.allocate(MIB) for _ in range(32))
        assert kept
        assert file.wait_for_reclaim(20)
        for mode in AllocationMode:
            for _ in range(20):
                kept.pop()
                kept.append(file.allocate(MIB, mode=mode))


def test_blocks_are_reserved_without_the_gil(tmp_path: Path) -> None:
    """Which may take long, and wait for others that need it."""
    with (
        MemoryFile(tmp_path / "file", disk_backed=True) as file,
        HeldCall("fallocate") as reserving,
    ):
        thread = threading.Thread(target=lambda: file.allocate(MIB))
        thread.start()
        reserving.wait()
        reserving.let_go()
        join([thread])


def test_a_file_system_that_cannot_reserve_is_asked_what_is_free(tmp_path: Path) -> None:
    with (
        MemoryFile(tmp_path / "file", disk_backed=True, capacity=1 << 44) as file,
        testing.FaultPlan("fallocate", errno.EOPNOTSUPP),
    ):
        file.allocate(MIB).view()[:1] = b"x"
        with pytest.raises(OSError, match="No space left"):
            file.allocate(1 << 43)
        with pytest.raises(OSError, match="fallocate"):
            file.allocate(MIB, mode=AllocationMode.ALLOCATE_AND_COMMIT)


def test_a_cache_in_a_full_file_system(small_disk: Path) -> None:
    with MemoryFile(small_disk / "file") as file, Cache[int, bytes]("64M", file=file) as cache:
        with pytest.raises(OSError, match="No space left"):
            cache.update((key, bytes(MIB)) for key in range(32))
        assert len(cache) >= 10
        assert all(bytes(value) == bytes(MIB) for _, value in cache.items())


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_errors_name_the_file_and_the_operation(tmp_path: Path, form: Callable[[str], Any]) -> None:
    """As those of the constructor do: a program may have many files, on many disks."""
    path = form(str(tmp_path / "file"))
    with MemoryFile(path) as file:
        kept = file.allocate(PAGE)
        cache = Cache[str, bytes]("64M", file=file)
        cases: list[tuple[str, str, Callable[[], Any]]] = [
            ("allocate", "ftruncate", lambda: file.allocate(1 << 31)),
            ("allocate", "fallocate", lambda: file.allocate(PAGE)),
            ("allocate", "ftruncate", lambda: file.allocate_range(1 << 31)),
            ("allocate", "fallocate", lambda: file.array(512)),
            ("allocate", "fallocate", lambda: cache.put("key", bytes(8 * PAGE))),
            ("allocate", "fallocate", lambda: pgalloc.share([bytes(PAGE)], file=file)),
            ("decommit", "fallocate", lambda: file.decommit(kept.range)),
            ("decommit", "fallocate", kept.decommit),
            ("view", "mmap", kept.view),
            ("map_range", "mmap", lambda: file.map_range(kept.range)),
        ]
        for operation, call, attempt in cases:
            assert file.wait_for_reclaim(20)  # it punches holes, too
            with testing.FaultPlan(call, errno.EIO, times=1), pytest.raises(OSError) as caught:
                attempt()
            assert (caught.value.errno, caught.value.filename) == (errno.EIO, os.fspath(path))
            assert caught.value.strerror.startswith(f"{operation}: {call}: ")
        cache.close()
    with MemoryFile() as file, testing.FaultPlan("ftruncate", errno.ENOSPC):
        with pytest.raises(OSError, match="allocate: ftruncate: ") as caught:
            file.allocate(PAGE)
        assert caught.value.filename is None


def test_memory_files_have_no_blocks_to_reserve() -> None:
    """What is not touched stays free."""
    with MemoryFile() as file, file.allocate(64 * MIB):
        assert file.stats().allocated_bytes == 64 * MIB
        assert pgalloc.memory_accounting().total() < 64 * MIB


def test_rlimits_are_as_they_were() -> None:
    """The tests above set theirs in programs of their own."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# Like a daemon that closes everything, and goes on; its files get the numbers.
_CLOSES_ALL = """
import os, tempfile, time
from pgalloc.pressure import ManualSource, Monitor
sources = [ManualSource(), ManualSource()]
monitors = [Monitor(), Monitor(sources=sources[:1])]
for monitor in monitors:
    monitor.subscribe(print)
os.closerange(3, 400)
files = [tempfile.TemporaryFile(buffering=0) for _ in range(80)]
for file in files:
    file.write(bytes(16))
    file.seek(0)
try:
    sources[1].signal()
except ValueError as error:
    assert "closed from outside" in str(error), error
else:
    raise AssertionError
for closing in (*monitors, *sources):
    closing.close()
for file in files:
    assert os.fstat(file.fileno()).st_size == 16 and file.tell() == 0
"""

# Without the standard streams there are three numbers that others print to.
_WITHOUT_STREAMS = """
import os, sys
from pgalloc.pressure import Monitor
kept = os.dup(2)
for number in (0, 1, 2):
    os.close(number)
monitor = Monitor()
monitor.subscribe(print)
for number in (0, 1, 2):
    try:
        os.fstat(number)
    except OSError:
        continue
    os.write(kept, b"%d is ours" % number)
monitor.close()
"""


@pytest.mark.parametrize("program", [_CLOSES_ALL, _WITHOUT_STREAMS])
def test_monitors_touch_no_descriptor_that_is_not_theirs(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
