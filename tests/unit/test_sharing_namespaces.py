"""An owner in a PID namespace of its own, as in a container, and peers outside of it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PAGE
from waiting import TIMEOUT_S, environment, eventually

import pgalloc

OWNER = textwrap.dedent("""
    import ctypes, os, sys
    CLONE_NEWPID = 0x20000000
    if ctypes.CDLL(None).unshare(CLONE_NEWPID) != 0:
        print("not permitted", flush=True)
        sys.exit()
    if child := os.fork():
        os.waitpid(child, 0)
        sys.exit()
    assert os.getpid() == 1
    import pgalloc
    mf = pgalloc.MemoryFile()
    server = mf.serve(sys.argv[1])
    print("serves", flush=True)
    for line in sys.stdin:
        print(eval(line), flush=True)
""")


class _Owner:
    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._process.stdout is not None
        self.greeting = self._process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[_Owner]:
    its = _Owner(tmp_path / "socket")
    if its.greeting != "serves":
        its.end()
        pytest.skip("namespaces are not permitted here")
    yield its
    its.end()


LEASED = "sum(lease.nbytes for lease in mf.leases())"


def _close_sockets() -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))


def _begin_child(act: Callable[[], int]) -> int:
    """A forked child, which exits with what it returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = act()
        finally:
            os._exit(status)
    return child


def test_what_a_peer_holds_that_is_not_seen_from_there_is_its_own(
    owner: _Owner, tmp_path: Path
) -> None:
    """Also when its connection is closed from outside. It comes back when the peer has ended."""
    ready, ready_end = os.pipe()
    go_on, go_on_end = os.pipe()

    def peer() -> int:
        pages = pgalloc.connect(tmp_path / "socket").allocate(PAGE)
        view = pages.view()
        view[:4] = b"mine"
        _close_sockets()
        os.write(ready_end, b"1")
        os.read(go_on, 1)
        return 0 if bytes(view[:4]) == b"mine" else 2

    child = _begin_child(peer)
    assert os.read(ready, 1) == b"1"
    # It looks at once, and again and again.
    owner.ask("__import__('time').sleep(0.3)")  # time: looks that find nothing
    assert owner.ask(LEASED) == str(PAGE)
    others = f"[mf.allocate({PAGE}).view().__setitem__(slice(0, 4), b'else') for _ in range(9)]"
    owner.ask(others)
    os.write(go_on_end, b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    eventually(lambda: owner.ask(LEASED) == "0", "the end of its leases")
    for fd in (ready, ready_end, go_on, go_on_end):
        os.close(fd)


def test_a_peer_that_is_not_seen_and_closes_gives_all_back(owner: _Owner, tmp_path: Path) -> None:
    with pgalloc.connect(tmp_path / "socket") as peer:
        pages = peer.allocate(PAGE)
        assert owner.ask("[lease.pid for lease in mf.leases()]") == f"[{os.getpid()}]"
        pages.release()
        assert peer.flush(TIMEOUT_S)
        eventually(lambda: owner.ask(LEASED) == "0")


def test_what_a_child_of_such_a_peer_held_comes_back(owner: _Owner, tmp_path: Path) -> None:
    """Of a child that ends without giving back, the kernel gives the owner a handle, too."""
    with pgalloc.connect(tmp_path / "socket") as peer, peer.allocate(PAGE) as pages:
        pages.view()[:4] = b"ours"

        def child() -> int:
            mine = peer.allocate(4 * PAGE)
            mine.view()[:4] = b"mine"
            return 0 if bytes(pages.view()[:4]) == b"ours" else 2

        for _ in range(3):
            assert os.waitstatus_to_exitcode(os.waitpid(_begin_child(child), 0)[1]) == 0
        eventually(lambda: owner.ask(LEASED) == str(PAGE), "the end of the children's leases")
        pages.release()
