"""Pages and caches for processes that are not children: sockets with a name."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAGE
from waiting import eventually

import pgalloc
from pgalloc import (
    Cache,
    ClosedError,
    MemoryFile,
    OptionError,
    OwnerGoneError,
    SharingError,
    testing,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def run(program: str, *arguments: Any) -> str:
    """What another program prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_that_is_no_child_connects(mf: MemoryFile, path: Path) -> None:
    with mf.serve(path) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        program = """
import sys, pgalloc
with pgalloc.connect(sys.argv[1]) as peer, peer.allocate(8192) as a:
    a.view()[:5] = b"hello"
    array = peer.array((2, 3), "i4")
    array[:] = 7
    assert peer.usage() and peer.capacity and peer.restore_id == ""
    print(a.range.start, peer.leased, array.sum(), repr(peer))
"""
        printed = run(program, server.path).split()
        assert printed[1:3] == [str(3 * PAGE), "42"]
        eventually(lambda: mf.leases() == [])
    assert not path.exists()
    assert server.closed
    eventually(lambda: mf.wait_for_reclaim() and not mf.segments())


@pytest.mark.parametrize("first", range(1, 9))
def test_an_owner_short_of_something_lets_peers_in_later(
    mf: MemoryFile, path: Path, first: int
) -> None:
    """It hangs up, and is asked again: the call that fails may be any of those it makes."""
    program = "import sys, pgalloc; pgalloc.connect(sys.argv[1]).close(); print('in')"
    with mf.serve(path):
        with testing.FaultPlan("getsockopt", errno.ENOMEM, first=first, times=1) as plan:
            assert run(program, path) == "in\n"
        assert plan.failures == 1


def test_a_peer_in_the_same_process(mf: MemoryFile, path: Path) -> None:
    with mf.serve(path), pgalloc.connect(path) as peer:
        a = peer.allocate(2 * PAGE)
        a.view()[:2] = b"hi"
        assert bytes(mf.map_range(a.range)[:2]) == b"hi"
        (lease,) = mf.leases()
        assert (lease.pid, lease.nbytes, lease.claimed) == (os.getpid(), 2 * PAGE, True)
        assert not peer.closed
        view = a.view()
    assert peer.closed
    (lease,) = mf.leases()  # a view keeps its pages
    assert lease.nbytes == 2 * PAGE
    assert bytes(view[:2]) == b"hi"
    for act in (lambda: peer.allocate(PAGE), peer.usage, lambda: a.clone(), peer.fileno):
        with pytest.raises(ClosedError):
            act()
    peer.close()
    view.release()
    eventually(lambda: mf.leases() == [])
    a.release()


def test_for_reading_only(mf: MemoryFile, path: Path) -> None:
    """Not by asking nicely: the descriptor cannot be written to."""
    with mf.serve(path, readonly=True), pgalloc.connect(path) as peer:
        assert peer.readonly
        own = mf.allocate(PAGE)
        own.view()[:4] = b"look"
        assert bytes(peer.map_range(own.range, "r")[:4]) == b"look"
        with pytest.raises(PermissionError):
            peer.map_range(own.range)
        with pytest.raises(PermissionError):
            peer.allocate(PAGE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(peer.fileno(), b"x", own.range.start)
        view = peer.map_range(own.range, "r")
        assert view.readonly
        own.release()


def test_no_process_serves_there(path: Path) -> None:
    with pytest.raises(OwnerGoneError, match="listens"):
        pgalloc.connect(path)
    for bad in ("", "a\0b"):
        with pytest.raises(OptionError):
            pgalloc.connect(bad)


def test_errors_of_connect_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "socket"
    with pytest.raises(NotADirectoryError, match=r"connect: .*Not a directory") as raised:
        pgalloc.connect(below)
    assert raised.value.filename == str(below)
    long = tmp_path / ("x" * 200)
    with pytest.raises(OptionError, match="107 bytes at most") as refused:
        pgalloc.connect(long)
    assert str(long) in str(refused.value)


def test_sockets_that_are_taken_or_left_behind(mf: MemoryFile, path: Path) -> None:
    with mf.serve(path):
        with pytest.raises(OSError, match="in use"):
            mf.serve(path)
        pgalloc.connect(path).close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deserted:
        deserted.bind(str(path))  # as a killed process leaves it
    with mf.serve(path):
        pgalloc.connect(path).close()
    path.write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        mf.serve(path)
    assert path.read_text() == "not a socket"
    with pytest.raises(OSError, match="No such file"):
        mf.serve(path.parent / "missing" / "socket")


def test_a_socket_in_a_locked_folder_stays(mf: MemoryFile, path: Path) -> None:
    """Its process may be about to listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deserted:
        deserted.bind(str(path))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"serve: .*locked by another process") as raised:
            mf.serve(path)
        assert (raised.value.errno, raised.value.filename) == (errno.EADDRINUSE, str(path))
        assert path.is_socket()
    finally:
        os.close(folder)
    with mf.serve(path):
        pgalloc.connect(path).close()


def test_a_server_does_not_remove_what_is_not_its_own(mf: MemoryFile, path: Path) -> None:
    server = mf.serve(path)
    path.unlink()
    path.write_text("another's")
    server.close()
    server.close()
    assert path.read_text() == "another's"


OWNER = """
import sys, pgalloc
mf = pgalloc.MemoryFile()
server = mf.serve(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


def start_owner(path: Path) -> subprocess.Popen[str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def end(owner: subprocess.Popen[str]) -> None:
    with owner:
        owner.kill()


def test_an_owner_that_is_started_again(path: Path) -> None:
    first = start_owner(path)
    peer = pgalloc.connect(path)
    a = peer.allocate(PAGE)
    a.view()[:4] = b"keep"
    end(first)
    assert path.exists()  # it was killed
    second = start_owner(path)
    with pytest.raises(OwnerGoneError):
        peer.allocate(PAGE)
    assert bytes(a.view()[:4]) == b"keep"
    with pgalloc.connect(path) as again, again.allocate(PAGE) as b:
        assert bytes(b.view()[:4]) == bytes(4)
        with pytest.raises(OwnerGoneError):
            peer.usage()
    a.release()
    peer.close()
    end(second)


def fill_backlog(path: Path, held: ExitStack) -> None:
    """Connections that are not accepted, until there is no room for more."""
    while True:
        sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            return


def test_an_owner_that_is_busy_for_too_long(path: Path) -> None:
    """It lives: no OwnerGoneError."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(path))
        listener.listen(1)
        fill_backlog(path, held)
        with pytest.raises(SharingError, match="did not answer in time") as raised:
            pgalloc.connect(path, timeout=0.05)
        assert type(raised.value) is SharingError
        assert str(path) in str(raised.value)


def test_signals_while_an_owner_is_busy(path: Path) -> None:
    """They are handled, and the wait goes on."""
    owner = start_owner(path)
    signals = 0

    def handle(*_: object) -> None:
        nonlocal signals
        signals += 1
        if signals == 5:
            held.close()
            os.kill(owner.pid, signal.SIGCONT)

    with ExitStack() as held:
        os.kill(owner.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, owner.pid, os.WSTOPPED)
        fill_backlog(path, held)
        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            pgalloc.connect(path).close()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert signals >= 5
    end(owner)


@pytest.mark.parametrize("call", ["socket", "set_send_timeout", "duplicate", "mmap"])
def test_errors_of_the_kernel_name_the_path(mf: MemoryFile, path: Path, call: str) -> None:
    with (
        mf.serve(path),
        testing.FaultPlan(call, errno.ENOMEM),
        pytest.raises(OSError, match=re.escape(str(path))) as raised,
    ):
        pgalloc.connect(path)
    assert raised.value.errno == errno.ENOMEM
    assert raised.value.filename == str(path)


# --- caches --------------------------------------------------------------------------------------


def test_a_cache_that_others_read(path: Path) -> None:
    with Cache("64M") as cache, cache.serve(path):
        cache["small"], cache["large"] = b"value", b"x" * 1_000_000
        cache["neighbour"] = b"beside it"
        cache.put("short-lived", b"gone", expire=1e-9)
        with Cache.connect(path) as reader:
            small, large = reader["small"], reader["large"]
            assert (bytes(small), len(large), large[-1]) == (b"value", 1_000_000, ord("x"))
            assert small.readonly
            assert reader.get("missing") is None
            assert reader.get("short-lived", "default") == "default"
            with pytest.raises(KeyError):
                reader["missing"]
            with pytest.raises(TypeError):
                reader[1.5]  # type: ignore[index]
            assert reader.get(1.5, "default") == "default"  # type: ignore[call-overload]
            assert 1.5 not in reader  # type: ignore[operator]
            assert reader.get_bytes("small") == b"value"
            assert reader.get_bytes("missing", 7) == 7
            assert cache.stats().hits == 3
            assert cache.stats().misses == 4
            # What is read stays as it is, whatever becomes of the key.
            del cache["small"], cache["neighbour"]
            for number in range(50):
                cache[number] = b"other"
            cache["large"] = b"y" * 1_000_000
            with testing.ManualPressure() as pressure:
                pressure.demand(1 << 40)
            assert bytes(small) == b"value"
            assert bytes(large[:3]) == b"xxx"
            assert reader.get("large") is None  # it was discarded
            large.release()
            small.release()
            assert reader._file.flush(30)
            assert cache.file.leases() == []
            cache["again"] = b"1"
            assert bytes(reader["again"]) == b"1"
        testing.verify_cache(cache)


def test_what_is_served_keeps_its_server(path: Path) -> None:
    """It need not be assigned; and a file or cache that is closed or gone leaves no socket."""

    def serve(thing: MemoryFile | Cache) -> Any:
        thing.serve(path)
        thing.serve(f"{path}.too").close()
        gc.collect()
        return thing

    with serve(MemoryFile()), pgalloc.connect(path) as peer:
        peer.allocate(PAGE).release()
    assert not path.exists()
    with serve(Cache("1M")) as cache, Cache.connect(path) as reader:
        cache["key"] = b"value"
        assert bytes(reader["key"]) == b"value"
    assert not path.exists()
    for thing in (MemoryFile, Cache):
        kept = serve(thing())
        del kept
        gc.collect()
        assert not path.exists()


def test_a_server_outlives_the_object_of_its_file(path: Path) -> None:
    mf = MemoryFile()
    server = mf.serve(path)
    del mf
    gc.collect()
    with server, pgalloc.connect(path) as peer:
        peer.allocate(PAGE).release()


def test_values_held_elsewhere_are_not_discarded(path: Path) -> None:
    with Cache() as cache, cache.serve(path), Cache.connect(path) as reader:
        cache["k"] = np.arange(10_000)
        array = np.frombuffer(reader["k"], dtype=np.int64)
        with testing.ManualPressure() as pressure:
            assert pressure.demand(1 << 40) == 0
            assert array.sum() == 49_995_000
            del array
            assert reader._file.flush(30)
            assert pressure.demand(1 << 40) > 0
        assert reader.get("k") is None


def test_a_reader_that_is_killed(path: Path) -> None:
    program = """
import os, sys, pgalloc
reader = pgalloc.Cache.connect(sys.argv[1])
view = reader["k"]
print(bytes(view[:3]), flush=True)
os.kill(os.getpid(), 9)
"""
    with Cache() as cache, cache.serve(path):
        cache["k"] = b"abc" * 10_000
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True
        )
        assert done.stdout == "b'abc'\n", done.stderr
        eventually(lambda: cache.file.leases() == [])
        with testing.ManualPressure() as pressure:
            eventually(lambda: pressure.demand(1 << 40) > 0, "the value can be discarded")


def test_what_is_served_is_a_cache_or_not(mf: MemoryFile, path: Path) -> None:
    with mf.serve(path), pytest.raises(SharingError, match="no cache"):
        Cache.connect(path)
    cache = Cache()
    server = cache.serve(path)
    with Cache.connect(path) as reader:
        cache.close()
        with pytest.raises(ClosedError):
            reader.get("k")
        server.close()
    assert reader.closed
    with pytest.raises(ClosedError):
        reader.get("k")
    with pytest.raises(ClosedError):
        cache.serve(path)
