"""copy.copy() and deepcopy() of every class: a copy, or a TypeError that says what to call.

No copy closes its original, nor takes anything from it.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE

import pgalloc
from pgalloc import Cache, MemoryFile, MemoryKind, SharedList, pressure, testing

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda thing: copy.deepcopy([thing])[0],
    lambda thing: dataclasses.asdict(Holder(thing))["thing"],
]


@dataclasses.dataclass
class Holder:
    thing: Any


class Things:
    """One of each class, by the names of the classes, and what shows that it still works."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        enter = stack.enter_context
        mf = enter(MemoryFile())
        server = enter(mf.serve(folder / "file"))
        peer = enter(pgalloc.connect(folder / "file"))
        cache = enter(Cache("1M"))
        cache["k"] = b"v"
        cache_server = enter(cache.serve(folder / "cache"))
        reader = enter(Cache.connect(folder / "cache"))
        monitor = enter(pressure.Monitor(sources=[pressure.ManualSource()]))
        source = pressure.ManualSource()
        stack.callback(source.close)
        stream = monitor.events()
        self.refused: dict[str, tuple[Any, Callable[[], Any]]] = {
            "MemoryFile": (mf, lambda: mf.allocate(PAGE)),
            "PeerFile": (peer, lambda: peer.allocate(PAGE)),
            "Allocation": (a := mf.allocate(PAGE), lambda: bytes(a)),
            "Allocation of a peer": (p := peer.allocate(PAGE), lambda: bytes(p)),
            "Server": (server, lambda: pgalloc.connect(folder / "file").close()),
            "Server of a cache": (cache_server, lambda: Cache.connect(folder / "cache").close()),
            "Cache": (cache, lambda: cache["k"]),
            "Cache of another process": (reader, lambda: reader["k"]),
            "Monitor": (monitor, monitor.info),
            "ManualSource": (source, lambda: source.fd >= 0 or 1 / 0),
            "EventStream": (stream, lambda: stream._mailbox.ended and 1 / 0),
        }
        ledger = pgalloc.Ledger()
        ledger.inc(5 * PAGE, MemoryKind.TMPFS, 3)
        ledger.inc(PAGE, MemoryKind.TMPFS)
        segments = testing.SegmentSet()
        segments.insert(PAGE, 3 * PAGE, 1)
        segments.insert(3 * PAGE, 4 * PAGE, 1, False)
        shared = pgalloc.share({"a": 1}, file=mf)
        items = SharedList([b"a", 1], file=mf)
        self.copied: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "Ledger": (ledger, lambda it: (it.total(), it.copy(), it.copy(3))),
            "SegmentSet": (segments, lambda it: it.segments()),
            "Shared": (shared, lambda it: it.get()),
            "SharedList": (items, lambda it: [bytes(it[0]), it[1]]),
            "SharedArray": (mf.array_like([1, 2]), lambda it: it.tolist()),
            "FileRange": (a.range, tuple),
            "EvictableRange": (pgalloc.EvictableRange(0, 1), tuple),
            "Segment": (mf.segments()[0], tuple),
            "MemoryFileStats": (mf.stats(), repr),
            "LoadProgress": (mf.load_progress(), repr),
            "CacheStats": (cache.stats(), repr),
            "Lease": (mf.leases()[0], tuple),
            "Limits": (pgalloc.Limits(nbytes=PAGE), repr),
            "PressureInfo": (pressure.info(), repr),
            "MonitorInfo": (monitor.info(), repr),
            "MonitorStats": (monitor.stats(), repr),
            "FaultPlan": (testing.FaultPlan("mmap"), lambda it: it._arguments),
            "MemoryKind": (MemoryKind.TMPFS, repr),
            "Policy": (pgalloc.Policy.LRU, repr),
            "FillError": (pgalloc.FillError("text", a.range, a), lambda it: (str(it), it.range)),
        }


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    pgalloc.share(None).release()
    with ExitStack() as stack:
        yield Things(stack, tmp_path)


@pytest.mark.leaks_allowed  # a broker starts and ends
@pytest.mark.parametrize("make", COPIES, ids=["copy", "deepcopy", "deepcopy in a list", "asdict"])
def test_what_is_there_once_says_what_to_call(things: Things, make: Callable[[Any], Any]) -> None:
    for name, (thing, works) in things.refused.items():
        with pytest.raises(TypeError, match=r"^an? \w+ cannot be copied: \w+"):
            make(thing)
        gc.collect()
        works()
        with pytest.raises(TypeError, match=r"^an? \w+ cannot be pickled: \w+"):
            pickle.dumps(thing)
        assert re.match("[A-Z]", name)


@pytest.mark.leaks_allowed
@pytest.mark.parametrize("make", COPIES[:3], ids=["copy", "deepcopy", "deepcopy in a list"])
def test_what_can_be_copied_is_apart(things: Things, make: Callable[[Any], Any]) -> None:
    for name, (thing, shows) in things.copied.items():
        before = shows(thing)
        other = make(thing)
        assert shows(other) == before, name
        if hasattr(other, "release"):
            other.release()
        if isinstance(other, pgalloc.Ledger):
            other.inc(1, MemoryKind.TMPFS, 3)
        if isinstance(other, testing.SegmentSet):
            other.clear()
        del other
        gc.collect()
        assert shows(thing) == before, name


@pytest.mark.leaks_allowed
def test_a_copy_outlives_its_original(things: Things) -> None:
    for name in ("Shared", "SharedList"):
        thing, shows = things.copied[name]
        other, before = dataclasses.asdict(Holder(thing))["thing"], shows(thing)
        thing.release()
        assert shows(other) == before
        with pytest.raises(pgalloc.ClosedError):
            copy.copy(thing)


def test_the_ledger_of_the_process_is_copied_as_it_is_now(mf: MemoryFile) -> None:
    mf.allocate(PAGE, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT)
    now = copy.copy(pgalloc.memory_accounting())
    assert now.copy() == pgalloc.memory_accounting().copy()
    now.inc(PAGE, MemoryKind.MAPPED)
    assert pgalloc.memory_accounting().total() == now.total() - PAGE


@pytest.mark.leaks_allowed
def test_every_public_class_is_here(things: Things) -> None:
    here = {
        type(thing).__name__
        for table in (things.refused, things.copied)
        for thing, _ in table.values()
    }
    others = {
        # Plain data of the same kinds as those here.
        *(
            "ImageExtent",
            "ImageInfo",
            "UnadoptedRange",
            "GuardStatus",
            "GuardedLimit",
            "LimitLevel",
        ),
        *("MemoryCgroup", "PressureEvent", "AllocationMode", "DelayedEviction", "Direction"),
        # What the user has made, and what needs a memory cgroup.
        *("EvictableUser", "PressureSource", "PressureLevelListener"),
        # Nothing of their own.
        *("ManualClock", "ManualPressure"),
    }
    classes = {
        name
        for module in (pgalloc, testing, pressure)
        for name in module.__all__
        if inspect.isclass(getattr(module, name))
        and not issubclass(getattr(module, name), BaseException)
    }
    assert classes - here - others == set()
