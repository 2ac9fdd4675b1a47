"""An owner of pages that stands still: its peers go on, and what they hold stays theirs.

``gil``: the owner's main thread keeps the GIL in one long call of C. Its peers allocate, release
and receive pages from each other all the while; how long each operation took is printed.

``idle``: the owner's main thread waits without the GIL, for comparison.

``stop``: the owner is stopped (SIGSTOP), for longer than requests wait, and goes on. Every view of
a peer shows its own bytes all the while and afterwards, no page has two owners, and what was asked
for in vain is given back.

Exits with 0 if all is well, with 1 if something was found, which is what ``--plant`` is for.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from pgalloc import PAGE_SIZE, Allocation, MemoryFile, PeerFile, SharingError, _core

_CONTEXT = multiprocessing.get_context("spawn")
_HELD = 16  # allocations of each peer, with views
_PATIENCE_S = 120.0
_LOOKS = 5000  # a millisecond apart

Times = dict[str, "array[float]"]  # seconds; of lists the garbage collector would look at each item


class BrokenPromiseError(Exception):
    """What must not happen."""


# --- A peer ---------------------------------------------------------------------------------------


class _Peer:
    """Pages with a stamp in each, and what is done with them."""

    def __init__(self, first: Allocation, number: int, timeout: float) -> None:
        self.file: PeerFile = first.file
        self.file._connection.link.set_timeout(timeout)
        first.release()
        self.number = number
        self.count = 0
        self.held: list[tuple[Allocation, memoryview, bytes]] = []
        self.times: Times = {what: array("d") for what in ("allocate", "release", "receive")}
        self.refused = 0

    def timed(self, what: str, act: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        try:
            return act()
        finally:
            self.times[what].append(time.perf_counter() - begin)

    def allocate(self) -> Allocation:
        """A page with a stamp of its own."""
        pages: Allocation = self.timed("allocate", lambda: self.file.allocate(PAGE_SIZE))
        self.count += 1
        stamp = b"%d of %d;" % (self.count, self.number)
        view = pages.view()
        view[: len(stamp)] = stamp
        self.held.append((pages, view, stamp))
        return pages

    def check(self) -> None:
        """Each page is what this peer wrote."""
        for _, view, stamp in self.held:
            if bytes(view[: len(stamp)]) != stamp:
                raise BrokenPromiseError(f"{stamp!r} has become {bytes(view[:24])!r}")

    def release(self) -> None:
        """The oldest."""
        pages, view, _ = self.held.pop(0)
        view.release()
        self.timed("release", pages.release)


def _peer(
    number: int,
    timeout: float,
    pause: float,
    line: Connection,
    first: Connection,
    other: Connection,
) -> None:
    """Work until told to stop; then say what was found."""
    found = ""
    try:
        peer = _Peer(first.recv(), number, timeout)
        gc.freeze()  # a full collection takes 30 ms
        line.send("ready")
        line.recv()
        while not line.poll():
            _work(peer, other)
            if pause:
                time.sleep(pause)  # time: the load
        peer.check()
        line.recv()
        peer.file.flush(_PATIENCE_S)
        line.send((peer.times, peer.refused, peer.file.leased))
        line.recv()
        peer.check()
        while peer.held:
            peer.release()
        peer.file.close()
    except BaseException as error:
        found = f"peer {number}: {error!r}"
    line.send(found)


def _work(peer: _Peer, other: Connection) -> None:
    """One round. An owner that does not answer in time is borne."""
    peer.check()
    try:
        while len(peer.held) < _HELD:
            peer.allocate()
        if peer.count % 4 == 0:
            pages, _, stamp = peer.held[-1]
            other.send((pages, stamp))  # a reference of its own travels
        while other.poll():
            received, stamp = peer.timed("receive", other.recv)
            peer.held.append((received, received.view(readonly=True), stamp))
    except SharingError:
        peer.refused += 1
    if len(peer.held) >= _HELD:
        peer.release()


# --- The owner ------------------------------------------------------------------------------------


def _owner(line: Connection, peers: list[Connection], plant: str | None) -> None:
    """Say what peers hold when asked to; keep the GIL for so many seconds when asked to."""
    if plant is not None:
        _core.broker_plant(plant)
    with MemoryFile() as file:
        for peer in peers:
            peer.send(file.allocate(PAGE_SIZE))
        line.send(os.getpid())
        while (told := line.recv()) is not None:
            if told == "leases":
                line.send({lease.pid: lease.nbytes for lease in file.leases() if lease.claimed})
            elif told == "drop":
                line.send(file.drop_unclaimed())
            else:
                ctypes.PyDLL(None).poll(None, 0, int(1000 * told))  # a PyDLL keeps the GIL
                line.send("done")
        file.drop_unclaimed()
        # What the peers held comes back once their processes have ended.
        for _ in range(_LOOKS):
            if not (used := [each for each in file.segments() if each.refs]):
                break
            time.sleep(0.001)  # time: it polls
        line.send(f"still in use: {used}" if used else "")


# --- Both -----------------------------------------------------------------------------------------


class _Stage:
    """An owner and its peers."""

    def __init__(self, peers: int, timeout: float, pause: float, plant: str | None) -> None:
        firsts = [_CONTEXT.Pipe(duplex=False) for _ in range(peers)]
        couples = [_CONTEXT.Pipe() for _ in range(-(-peers // 2))]  # peers send pages to each other
        self.line, theirs = _CONTEXT.Pipe()
        arguments = (theirs, [end for _, end in firsts], plant)
        self.owner = _CONTEXT.Process(target=_owner, args=arguments)
        self.owner.start()
        self.owner_pid: int = self.line.recv()
        self.peers: list[Any] = []
        self.lines: list[Connection] = []
        for number, (first, _) in enumerate(firsts):
            ours, its = _CONTEXT.Pipe()
            other = couples[number // 2][number % 2]
            process = _CONTEXT.Process(
                target=_peer, args=(number, timeout, pause, its, first, other)
            )
            process.start()
            self.peers.append(process)
            self.lines.append(ours)
        for line in self.lines:
            self.expect(line)
        for line in self.lines:  # all have started: that takes time of its own
            line.send("begin")

    def expect(self, line: Connection) -> Any:
        """What comes next. Raises BrokenPromiseError if that is a finding, or nothing."""
        if not line.poll(_PATIENCE_S):
            raise BrokenPromiseError("a process does not answer")
        message = line.recv()
        if isinstance(message, str) and message.startswith("peer "):
            raise BrokenPromiseError(message)
        return message

    def stand_by(self, seconds: float) -> None:
        """Until then, unless a peer has found something."""
        if ready := wait(self.lines, timeout=seconds):
            raise BrokenPromiseError(str(ready[0].recv()))  # type: ignore[union-attr]

    def ask_owner(self, what: str | float | None) -> Any:
        self.line.send(what)
        return self.line.recv()

    def stop_peers(self) -> tuple[Times, int]:
        """Their times, and how many requests were in vain. The owner knows what they hold."""
        for line in self.lines:
            line.send("stop")
        told = [self.expect(line) for line in self.lines]
        self.ask_owner("drop")
        held = {peer.pid: leased for peer, (_, _, leased) in zip(self.peers, told, strict=True)}
        for _ in range(100):
            leases = self.ask_owner("leases")
            if leases == held:
                break
            time.sleep(0.1)  # time: it polls
        else:
            raise BrokenPromiseError(f"the owner counts {leases}, its peers {held}")
        times: Times = {}
        for each, _, _ in told:
            for what, seconds in each.items():
                times.setdefault(what, array("d")).extend(seconds)
        return times, sum(refused for _, refused, _ in told)

    def end(self) -> None:
        for line in self.lines:
            line.send("end")
        for line, peer in zip(self.lines, self.peers, strict=True):
            if found := self.expect(line):
                raise BrokenPromiseError(found)
            peer.join()
        if found := self.ask_owner(None):
            raise BrokenPromiseError(found)
        self.owner.join()

    def kill(self) -> None:
        for process in [*self.peers, self.owner]:
            with suppress(ProcessLookupError):
                process.kill()


def _report(times: Times) -> None:
    print(f"{'milliseconds':<12} {'times':>9} {'p50':>9} {'p99':>9} {'p99.9':>9} {'longest':>9}")
    for what, taken in times.items():
        seconds = sorted(taken)
        shares = [
            seconds[min(int(len(seconds) * at), len(seconds) - 1)] for at in (0.5, 0.99, 0.999)
        ]
        figures = [1e3 * each for each in (*shares, seconds[-1])]
        print(f"{what:<12} {len(seconds):>9}" + "".join(f" {each:>9.3f}" for each in figures))


def run(options: argparse.Namespace) -> None:
    """The whole of it."""
    stage = _Stage(options.peers, options.timeout, options.pause / 1000, options.plant)
    try:
        if options.how == "gil":
            stage.line.send(options.seconds)
            stage.stand_by(options.seconds)
            stage.expect(stage.line)
        elif options.how == "idle":
            stage.stand_by(options.seconds)
        else:
            os.kill(stage.owner_pid, signal.SIGSTOP)
            stage.stand_by(options.seconds)
            os.kill(stage.owner_pid, signal.SIGCONT)
            stage.stand_by(2)
        times, refused = stage.stop_peers()
        stage.end()
    except BaseException:
        stage.kill()
        raise
    _report(times)
    print(f"ok: {refused} requests were in vain; every page was its peer's alone, and is back")


def main() -> int:
    """Run it. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=("gil", "idle", "stop"))
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60, help="of the peers' requests")
    parser.add_argument(
        "--pause",
        type=float,
        default=0,
        metavar="MS",
        help="of a peer after each round: without one peers keep the processors busy",
    )
    parser.add_argument("--plant", choices=("early", "lost"), help="a bug that must be found")
    options = parser.parse_args()
    try:
        run(options)
    except BaseException as error:
        print(f"FAILED: {error!r}", flush=True)
        return 1
    if options.plant:
        print("the planted bug was not found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
