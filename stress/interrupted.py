"""Signal handlers that raise, at any moment of every public call, and of a peer's calls once more.

Each call is made again and again until its handler has raised so many times. Then all is quiet, and
the account is exact: no reference, lease, offer, descriptor, thread or socket file is left. The
calls are those of tests/public_calls.py, but for bare ranges: one whose call is interrupted before
it is assigned has no owner in any library; and some that another process owns. Exits with 0 if all
is well, with 1 if something was found.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from sharing_api.leftovers import Leftovers, expect

import pgalloc
from pgalloc import PAGE_SIZE, Cache, MemoryFile, SharingError, testing

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from public_calls import CALLS, Call, Things, start_what_stays

_SETTLE_S_MAX = 30.0
# By threading.Thread, whose start() turns what a handler raises into a RuntimeError, at times.
_STARTS_THREADS = ("memory pressure", "default_monitor", "PressureLevelListener")
_OFFERS = 200  # that are received before new ones are asked for

Calls = dict[str, Callable[[], Any]]


class Hit(BaseException):
    """What the signal handler raises."""


class BrokenPromiseError(Exception):
    """What must not happen."""


def _raise(*_: object) -> None:
    """Disarms the timer first.

    CPython before 3.13 can lose its note of a signal that comes while it takes the GIL: the handler
    runs in the next call, and the timer of that one would raise outside of what guards it.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise Hit


# --- The other process: it is not interrupted -----------------------------------------------------


def _other(folder: str, line: Connection) -> None:
    """An owner and a peer, as the line says."""
    with ExitStack() as stack:
        file = stack.enter_context(MemoryFile(capacity=1 << 30))
        stack.enter_context(file.serve(f"{folder}/file"))
        cache = stack.enter_context(Cache("8M"))
        cache["key"] = b"value" * 1000
        stack.enter_context(cache.serve(f"{folder}/cache"))
        line.send(file.allocate(PAGE_SIZE))
        while (told := line.recv()) != "end":
            if told == "offers":
                line.send([_sent(file) for _ in range(_OFFERS)])
            else:
                line.send(_held(file, cache))


def _sent(file: MemoryFile) -> bytes:
    with file.allocate(PAGE_SIZE) as pages:
        return bytes(ForkingPickler.dumps(pages))


def _held(file: MemoryFile, cache: Cache[Any, Any]) -> str:
    """What peers hold; empty if that is nothing."""
    file.drop_unclaimed()
    deadline = time.monotonic() + _SETTLE_S_MAX
    while True:
        leases = [*file.leases(), *cache.file.leases()]
        testing.verify(file)
        used = [segment for segment in file.segments() if segment.refs]
        if not leases and not used:
            return ""
        if time.monotonic() > deadline:  # time: a bound on a hang
            return f"still held: {leases}, {used}"
        time.sleep(0.01)  # time: it polls


# --- Calls ----------------------------------------------------------------------------------------


def _calls_of_a_peer(folder: str, line: Connection, file: Any) -> Calls:
    kept = file.allocate(4 * PAGE_SIZE)
    reader = Cache.connect(f"{folder}/cache")
    sent: list[bytes] = []

    def receive() -> None:
        if not sent:
            signal.setitimer(signal.ITIMER_REAL, 0)
            line.send("offers")
            sent.extend(line.recv())
        with suppress(SharingError):  # an interrupted one may have claimed it
            ForkingPickler.loads(sent.pop()).release()

    def unpin() -> None:
        kept.unpin()
        kept.pin()

    return {
        "connect": lambda: pgalloc.connect(f"{folder}/file").close(),
        "allocate": lambda: file.allocate(PAGE_SIZE).release(),
        "clone": lambda: kept.clone().release(),
        "slice": lambda: kept.slice(0, PAGE_SIZE).release(),
        "view": lambda: kept.view().release(),
        "unpin and pin": unpin,
        "decommit": kept.decommit,
        "usage": file.usage,
        "has_unique_ref": lambda: file.has_unique_ref(kept.range),
        "flush": file.flush,
        "receive": receive,
        "read": lambda: bytes(reader["key"][:10]),
        "put": lambda: reader.put("small", bytes(100)),
        "put pages": lambda: reader.put("large", bytes(3 * PAGE_SIZE)),
        "incr": lambda: reader.incr("number", initial=0),
        "pop": lambda: reader.pop("small", None),
        "connect a reader": lambda: Cache.connect(f"{folder}/cache").close(),
        "end": lambda: (kept.release(), reader.close()),
    }


# --- Interrupts -----------------------------------------------------------------------------------


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _interrupt(name: str, call: Callable[[], Any], count: int, source: random.Random) -> int:
    """How often it was made until its handler had raised so many times."""
    usual = min(_seconds(call) for _ in range(5))
    made = hits = 0
    while hits < count:
        try:
            while hits < count:
                made += 1
                # Longer than it takes, at times: it has to succeed, too.
                signal.setitimer(signal.ITIMER_REAL, source.uniform(1e-6, 1.3 * usual + 5e-6))
                call()
                signal.setitimer(signal.ITIMER_REAL, 0)
                if made > 100 * count:
                    raise BrokenPromiseError(f"{name} is not interrupted")
        except Hit:
            hits += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return made


def _torture(calls: Calls, options: argparse.Namespace, source: random.Random) -> None:
    end = calls.pop("end")
    for name, call in calls.items():
        if options.only in name:
            _torture_one(name, call, options, source)
    end()


def _torture_one(
    name: str, call: Callable[[], Any], options: argparse.Namespace, source: random.Random
) -> None:
    made = _interrupt(name, call, options.interrupts, source)
    gc.collect()
    print(f"  {name:<24} {options.interrupts:>7} interrupts of {made:>8} calls", flush=True)


def _torture_public(
    name: str, call: Call, folder: Path, options: argparse.Namespace, source: random.Random
) -> None:
    things = Things(folder)
    call.make(things)
    before = things.left()
    _torture_one(name, lambda: call.make(things), options, source)
    call.make(things)
    deadline = time.monotonic() + _SETTLE_S_MAX
    while not things.is_back(before):
        if time.monotonic() > deadline:  # time: a bound on a hang
            raise BrokenPromiseError(f"{name}: left {things.left()} instead of {before}")
        time.sleep(0.01)  # time: it polls
    things.close()


def run(options: argparse.Namespace, folder: str) -> None:
    """The whole of it."""
    source = random.Random(options.seed)
    context = multiprocessing.get_context("spawn")
    line, theirs = context.Pipe()
    other = context.Process(target=_other, args=(folder, theirs))
    other.start()
    theirs.close()
    start_what_stays()
    with MemoryFile() as file, file.allocate(PAGE_SIZE) as pages:
        pages.unpin()
    first = line.recv()
    file = first.file
    first.release()
    before = Leftovers.now()._replace(names=1 << 30)  # other programs have names there
    print("a peer:")
    _torture(_calls_of_a_peer(folder, line, file), options, source)
    if not file.flush(_SETTLE_S_MAX) or file.leased:
        raise BrokenPromiseError(f"the peer holds {file.leased} bytes")
    gc.collect()
    line.send("held")
    if held := line.recv():
        raise BrokenPromiseError(held)
    expect(before)
    print("every public call:")
    for name, call in CALLS.items():
        if not call.bare and name not in _STARTS_THREADS and options.only in name:
            with tempfile.TemporaryDirectory(prefix="pgalloc-") as own:
                _torture_public(name, call, Path(own), options, source)
    gc.collect()
    expect(before)
    if names := sorted(os.listdir(folder)) != ["cache", "file"]:
        raise BrokenPromiseError(f"files that stay: {names}")
    line.send("end")
    other.join()


def main() -> int:
    """Run it. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interrupts", type=int, default=10_000, help="of each call")
    parser.add_argument("--only", default="", help="calls with this in their names")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _raise)
    sys.unraisablehook = lambda _: None  # handlers raise in finalizers, too
    with tempfile.TemporaryDirectory(prefix="pgalloc-") as folder:
        try:
            run(options, folder)
        except BaseException as error:
            traceback.print_exc()
            print(f"FAILED: {error!r}", flush=True)
            return 1
    print("ok: nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
