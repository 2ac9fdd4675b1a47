"""Every public call, by a name of its own: what it needs, the call, and what may be left of it.

The tests of what may come between make each of them (test_interrupted_calls.py and those beside
it), stress/interrupted.py does, and test_public_calls.py proves that none is missing.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

from waiting import eventually

import pgalloc
from pgalloc import (
    CHUNK_SIZE,
    PAGE_SIZE,
    Allocation,
    AllocationMode,
    Cache,
    DelayedEviction,
    EvictableRange,
    FileRange,
    Ledger,
    MemoryFile,
    MemoryKind,
    OptionError,
    PeerFile,
    SharedList,
    SharingError,
    _core,
    pressure,
)
from pgalloc.pressure import default_guard
from pgalloc.pressure.guard import GuardSource
from pgalloc.testing import verify_cache

FOUR = 4 * PAGE_SIZE


def start_what_stays() -> None:
    """What the first use of it starts, for as long as the process lives."""
    default_guard.ensure()
    GuardSource().close()
    _core.broker_address()
    pgalloc.share(None).release()
    with MemoryFile(capacity=CHUNK_SIZE) as file:
        sent = bytes(ForkingPickler.dumps(file.allocate(PAGE_SIZE)))
    with suppress(SharingError):  # it asks: a connection to this process
        ForkingPickler.loads(sent)


class User:
    """An evictable user."""

    def evict(self, range: EvictableRange) -> None:
        pass


class Left(NamedTuple):
    """What there is at a moment."""

    descriptors: int
    others: list[object]


class Things:
    """What calls work on: each made when it is first asked for. And what may be left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = User()
        self.patience_s: float | None = None  # of those that connect
        self.stack = ExitStack()
        self.end: Callable[[], None] = _nothing  # is called again, if that was interrupted

    # --- an owner --------------------------------------------------------------------------------

    @cached_property
    def file(self) -> MemoryFile:
        file = MemoryFile(capacity=CHUNK_SIZE, delayed_eviction=DelayedEviction.MANUAL)
        return self.stack.enter_context(file)

    @cached_property
    def pages(self) -> Allocation:
        pages = self.file.allocate(FOUR)
        pages.view()[:4] = b"data"
        return pages

    @cached_property
    def image(self) -> Path:
        """Of a file of the same kind, with pages that look like these."""
        path = self.folder / "image"
        with MemoryFile(capacity=CHUNK_SIZE) as file, file.allocate(FOUR) as pages:
            pages.view()[:4] = b"data"
            file.mark_savable()
            file.save(path)
        return path

    @property
    def restored(self) -> MemoryFile:
        """A file whose pages no owner has taken over: a new one if they were."""
        kept: MemoryFile | None = vars(self).get("_restored")
        if kept is not None and (kept.closed or kept._forked or kept.unadopted()):
            return kept
        self._restored = MemoryFile.restore(self.image)
        if kept is not None:
            kept.close()
        return self._restored

    @cached_property
    def server(self) -> pgalloc.Server:
        self.pages  # noqa: B018 - it is there before a peer is
        return self.stack.enter_context(self.file.serve(self.folder / "file"))

    # --- a peer, in the same process -------------------------------------------------------------

    @cached_property
    def peer(self) -> PeerFile:
        self.server  # noqa: B018 - it listens
        return self.stack.enter_context(pgalloc.connect(self.folder / "file"))

    @cached_property
    def leased(self) -> Allocation:
        return self.peer.allocate(FOUR)

    # --- objects in pages ------------------------------------------------------------------------

    @cached_property
    def shared(self) -> pgalloc.Shared[dict[str, int]]:
        return pgalloc.share({"a": 1}, file=self.file)

    @cached_property
    def items(self) -> SharedList:
        return SharedList([b"a", 1], file=self.file)

    # --- caches ----------------------------------------------------------------------------------

    @cached_property
    def cache(self) -> Cache:
        cache = self.stack.enter_context(Cache("4M"))
        cache["key"] = b"value"
        return cache

    @cached_property
    def reader(self) -> pgalloc.Cache:
        self.stack.enter_context(self.cache.serve(self.folder / "cache"))
        return self.stack.enter_context(Cache.connect(self.folder / "cache"))

    @cached_property
    def saved_cache(self) -> bytes:
        from pgalloc.cache.snapshot import encode

        with Cache("4M") as cache:
            return encode(cache)

    @cached_property
    def cached(self) -> Any:
        return pgalloc.cached(self.cache)(_result)

    # --- pressure --------------------------------------------------------------------------------

    @cached_property
    def source(self) -> pressure.ManualSource:
        source = pressure.ManualSource()
        self.stack.callback(source.close)
        return source

    @cached_property
    def monitor(self) -> pressure.Monitor:
        monitor = pressure.Monitor(sources=[pressure.ManualSource()])
        monitor.subscribe(_ignore)
        return self.stack.enter_context(monitor)

    @cached_property
    def group(self) -> pressure.MemoryCgroup:
        """A v1 group of ordinary files."""
        directory = self.folder / "group"
        directory.mkdir()
        (directory / "memory.pressure_level").touch()
        (directory / "cgroup.event_control").touch()
        return pressure.MemoryCgroup("v1", "/fake", directory, directory, True)

    @cached_property
    def listener(self) -> pressure.PressureLevelListener:
        listener = pressure.PressureLevelListener(_nothing, cgroup=self.group)
        return self.stack.enter_context(listener)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger()

    # --- what may be left ------------------------------------------------------------------------

    def is_back(self, before: Left) -> bool:
        """Whether there is no more than that, and as many references and the like."""
        now = self.left()
        return now.descriptors <= before.descriptors and now.others == before.others

    def left(self) -> Left:
        """What there is, once all that ends by itself has ended."""
        self.end()
        gc.collect()
        made = vars(self)
        watching = sum(name in made for name in ("monitor", "listener"))
        eventually(lambda: _watchers() <= watching, "the end of monitors that are gone")
        if "peer" in made and not self.peer.closed:
            self.peer.flush(1)
        if "reader" in made and not self.reader.closed:
            self.reader._file.flush(1)
        if "cache" in made and not self.cache.closed:
            verify_cache(self.cache)
            self.cache.clear()
            self.cache["key"] = b"value"
        found: list[object] = [sorted(os.listdir(self.folder))]
        if "_restored" in made and not self._restored.closed:
            found.append([segment.refs for segment in self.restored.segments()])
        for file in self._files():
            file.drop_unclaimed()
            assert file.wait_for_reclaim()
            used = sorted((s.end - s.start, s.refs) for s in file.segments())
            found.append((used, sorted(lease.nbytes for lease in file.leases())))
        if "file" in made and not self.file.closed:
            self.file.mark_all_unevictable(self.user)
            with suppress(OptionError):
                self.file.remove_save_hook("hook")
            found += [len(self.file._evictor._known)]
        if "cache" in made and not self.cache.closed:
            found.append(len(self.cache))
        if "monitor" in made and not self.monitor.closed:
            found.append(self.monitor.stats().subscribers)
        return Left(_descriptors(), found)

    def _files(self) -> list[MemoryFile]:
        made = vars(self)
        files = [self.file] if "file" in made else []
        files += [self.cache.file] if "cache" in made else []
        return [file for file in files if not file.closed]

    def close(self) -> None:
        """End all, and forget it."""
        self.stack.close()
        if "_restored" in vars(self):
            self._restored.close()
        vars(self).clear()


class Call(NamedTuple):
    """One call."""

    row: str
    """Of the table in docs/testing.md."""

    names: str
    """The public names that it shows, ``Class.method`` or ``function``."""

    make: Callable[[Things], Any]

    on: str = ""
    """What of the things it is a call of, and can be closed meanwhile; empty if nothing can."""

    closed: str = ""
    """What it raises once that is closed; empty if it works."""

    child: str = ""
    """What it raises in a forked child; empty if it works."""

    descriptors: str = ""
    """What it raises if the process can have no more; empty if it takes none."""

    bare: bool = False
    """Whether it returns or changes references that no handle owns: those of an interrupted call
    have no owner in any library."""


def _descriptors() -> int:
    """Without the broker's, which closes some a moment later."""
    brokers = set(_core.broker_descriptors())
    listed = os.listdir("/proc/self/fd")
    open_ = {int(fd) for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}  # not the listing's
    return len(open_ - brokers.union(_core.broker_descriptors()))


def _watchers() -> int:
    return sum(thread.name == "pgalloc-pressure" for thread in threading.enumerate())


def _result(*_: Any) -> bytes:
    return b"result"


def _ignore(_: pressure.PressureEvent) -> None:
    pass


def _nothing() -> None:
    pass


def _run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """To the end, of what waits for nothing; without a loop, which has descriptors."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()


def _pin(pages: Allocation) -> None:
    pages.unpin()
    pages.pin()


def _counted(file: Any, range: FileRange) -> None:
    file.inc_ref(range)
    file.dec_ref(range)


def _hook(it: Things) -> None:
    with suppress(OptionError):
        it.file.remove_save_hook("hook")
    it.file.save_hook("hook", save=bytes)


def _send(pages: Any) -> None:
    ForkingPickler.dumps(pages)


def _receive(it: Things) -> None:
    ForkingPickler.loads(bytes(ForkingPickler.dumps(it.pages))).release()


def _adopt(it: Things) -> None:
    restored = it.restored
    first = restored.unadopted()[0]
    Allocation.adopt(restored, FileRange(first.start, first.end)).release()


def _adopt_range(it: Things) -> None:
    restored = it.restored
    first = restored.unadopted()[0]
    restored.adopt_range(FileRange(first.start, first.end))


def _listen(it: Things) -> None:
    it.end()
    listener = pressure.PressureLevelListener(_nothing, cgroup=it.group)
    it.end = listener.stop
    listener.stop()


def _subscribe(it: Things) -> None:
    it.end()
    it.end = it.monitor.subscribe(_ignore)
    it.end()


def _from_snapshot(it: Things) -> None:
    with MemoryFile(capacity=CHUNK_SIZE) as file:
        Cache.from_snapshot(file, it.saved_cache).close()


COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
RANGE = EvictableRange(0, 4)

CALLS: dict[str, Call] = {
    # --- files -----------------------------------------------------------------------------------
    "MemoryFile": Call(
        "making a file",
        "MemoryFile",
        lambda it: MemoryFile(capacity=CHUNK_SIZE).close(),
        descriptors="EMFILE",
    ),
    "memory pressure": Call(
        "making a file",
        "MemoryFile",
        lambda it: MemoryFile(
            capacity=CHUNK_SIZE,
            delayed_eviction=DelayedEviction.ENABLED,
            use_host_memcg_pressure=True,
        ).close(),
        descriptors="EMFILE",
    ),
    "close": Call(
        "closing",
        "MemoryFile.close",
        lambda it: it.file.close(),
        "file",
        child="ForkedError",
    ),
    "allocate": Call(
        "allocating",
        "MemoryFile.allocate Allocation",
        lambda it: it.file.allocate(PAGE_SIZE, mode=COMMIT),
        "file",
        closed="ClosedError",
    ),
    "allocate and read": Call(
        "allocating",
        "MemoryFile.allocate",
        lambda it: it.file.allocate(PAGE_SIZE, reader=len),
        "file",
        closed="ClosedError",
    ),
    "array": Call(
        "arrays",
        "MemoryFile.array",
        lambda it: it.file.array(10),
        "file",
        closed="ClosedError",
    ),
    "array_like": Call(
        "arrays",
        "MemoryFile.array_like",
        lambda it: it.file.array_like([1, 2]),
        "file",
        closed="ClosedError",
    ),
    "allocate_range": Call(
        "bare ranges",
        "MemoryFile.allocate_range MemoryFile.dec_ref",
        lambda it: it.file.dec_ref(it.file.allocate_range(PAGE_SIZE)),
        "file",
        bare=True,
        closed="ClosedError",
    ),
    "allocate_range and read": Call(
        "bare ranges",
        "MemoryFile.allocate_range",
        lambda it: it.file.dec_ref(it.file.allocate_range(PAGE_SIZE, reader=len)),
        "file",
        bare=True,
        closed="ClosedError",
    ),
    "own a range": Call(
        "bare ranges",
        "Allocation",
        lambda it: Allocation(it.file, it.file.allocate_range(PAGE_SIZE)),
        "file",
        bare=True,
        closed="ClosedError",
    ),
    "inc_ref": Call(
        "bare ranges",
        "MemoryFile.inc_ref MemoryFile.dec_ref",
        lambda it: _counted(it.file, it.pages.range),
        "file",
        bare=True,
        closed="ClosedError",
    ),
    "has_unique_ref": Call(
        "looking",
        "MemoryFile.has_unique_ref",
        lambda it: it.file.has_unique_ref(it.pages.range),
        "file",
        closed="ClosedError",
    ),
    "map_range": Call(
        "viewing",
        "MemoryFile.map_range",
        lambda it: it.file.map_range(it.pages.range),
        "file",
        closed="ClosedError",
    ),
    "MemoryFile.decommit": Call(
        "decommitting",
        "MemoryFile.decommit",
        lambda it: it.file.decommit(it.pages.range),
        "file",
        closed="ClosedError",
    ),
    # --- handles ---------------------------------------------------------------------------------
    "clone": Call(
        "sharing a handle",
        "Allocation.clone",
        lambda it: it.pages.clone(),
        "file",
        closed="ClosedError",
    ),
    "slice": Call(
        "sharing a handle",
        "Allocation.slice",
        lambda it: it.pages.slice(0, PAGE_SIZE),
        "file",
        closed="ClosedError",
    ),
    "view": Call(
        "viewing",
        "Allocation.view Allocation.address",
        lambda it: (it.pages.view(readonly=True), it.pages.address),
        "file",
        closed="ClosedError",
    ),
    "decommit": Call(
        "decommitting",
        "Allocation.decommit",
        lambda it: it.pages.decommit(),
        "file",
        closed="ClosedError",
    ),
    "pin": Call(
        "pinning",
        "Allocation.pin Allocation.unpin Allocation.pinned",
        lambda it: _pin(it.pages),
        "file",
        closed="ClosedError",
    ),
    "attributes": Call(
        "labels",
        "Allocation.range Allocation.nbytes Allocation.file Allocation.released",
        lambda it: (
            it.pages.range,
            it.pages.nbytes,
            it.pages.file,
            it.pages.released,
        ),
        "file",
    ),
    "release": Call(
        "releasing",
        "Allocation.release",
        lambda it: it.file.allocate(PAGE_SIZE).release(),
        "file",
        closed="ClosedError",
    ),
    # --- evicting --------------------------------------------------------------------------------
    "mark_evictable": Call(
        "evicting",
        "MemoryFile.mark_evictable",
        lambda it: it.file.mark_evictable(it.user, EvictableRange(0, 9)),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "mark_unevictable": Call(
        "evicting",
        "MemoryFile.mark_unevictable MemoryFile.mark_all_unevictable",
        lambda it: (
            it.file.mark_unevictable(it.user, RANGE),
            it.file.mark_all_unevictable(it.user),
        ),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "start_evictions": Call(
        "evicting",
        "MemoryFile.start_evictions MemoryFile.wait_for_evictions",
        lambda it: (it.file.start_evictions(), it.file.wait_for_evictions()),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    # --- figures ---------------------------------------------------------------------------------
    "update_usage": Call(
        "looking at the owner",
        "MemoryFile.update_usage",
        lambda it: it.file.update_usage(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "usage": Call("labels", "MemoryFile.usage", lambda it: it.file.usage(), "file"),
    "total_usage": Call(
        "looking at the owner",
        "MemoryFile.total_usage",
        lambda it: it.file.total_usage(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "huge_usage": Call(
        "looking at the owner",
        "MemoryFile.huge_usage",
        lambda it: it.file.huge_usage(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "segments": Call(
        "looking at the owner",
        "MemoryFile.segments",
        lambda it: it.file.segments(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "first_shared_range": Call(
        "looking at the owner",
        "MemoryFile.first_shared_range",
        lambda it: it.file.first_shared_range(it.pages.range),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "wait_for_reclaim": Call(
        "looking at the owner",
        "MemoryFile.wait_for_reclaim",
        lambda it: it.file.wait_for_reclaim(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "stats": Call("labels", "MemoryFile.stats", lambda it: it.file.stats(), "file"),
    "labels": Call(
        "labels",
        "MemoryFile.closed MemoryFile.capacity MemoryFile.is_disk_backed MemoryFile.restore_id"
        " MemoryFile.is_savable MemoryFile.should_cache_evictable MemoryFile.restore_hooks"
        " MemoryFile.accounting",
        lambda it: (
            it.file.closed,
            it.file.capacity,
            it.file.is_disk_backed,
            it.file.restore_id,
            it.file.is_savable,
            it.file.should_cache_evictable,
            it.file.restore_hooks,
            it.file.accounting,
            str(it.file),
        ),
        "file",
    ),
    "fileno": Call(
        "looking",
        "MemoryFile.fileno MemoryFile.total_size",
        lambda it: (it.file.fileno(), it.file.total_size),
        "file",
        closed="ClosedError",
    ),
    "file": Call(
        "looking at the owner",
        "MemoryFile.file",
        lambda it: it.file.file,
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "mark_savable": Call(
        "looking at the owner",
        "MemoryFile.mark_savable",
        lambda it: it.file.mark_savable(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    # --- images ----------------------------------------------------------------------------------
    "save": Call(
        "saving",
        "MemoryFile.save",
        lambda it: (it.pages, it.file.save(it.folder / "saved")),
        "file",
        closed="ClosedError",
        child="ForkedError",
        descriptors="EMFILE",
    ),
    "save_hook": Call(
        "hooks",
        "MemoryFile.save_hook MemoryFile.remove_save_hook",
        _hook,
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "restore": Call(
        "restoring",
        "MemoryFile.restore",
        lambda it: MemoryFile.restore(it.image).close(),
        descriptors="EMFILE",
    ),
    "restore in the background": Call(
        "restoring",
        "MemoryFile.restore",
        lambda it: MemoryFile.restore(it.image, background=True).close(),
        descriptors="EMFILE",
    ),
    "adopt": Call(
        "adopting",
        "Allocation.adopt",
        _adopt,
        "_restored",
        closed="ClosedError",
        child="ForkedError",
    ),
    "adopt_range": Call(
        "bare ranges of an image",
        "MemoryFile.adopt_range",
        _adopt_range,
        "_restored",
        bare=True,
        closed="ClosedError",
        child="ForkedError",
    ),
    "unadopted": Call(
        "adopting",
        "MemoryFile.unadopted",
        lambda it: it.restored.unadopted(),
        "_restored",
        closed="ClosedError",
        child="ForkedError",
    ),
    "drop_unadopted": Call(
        "adopting",
        "MemoryFile.drop_unadopted",
        lambda it: it.restored.drop_unadopted(),
        "_restored",
        closed="ClosedError",
        child="ForkedError",
    ),
    "loading": Call(
        "waiting for an image",
        "MemoryFile.loading MemoryFile.load_progress MemoryFile.wait_loaded",
        lambda it: (it.restored.loading, it.restored.load_progress(), it.restored.wait_loaded()),
        "_restored",
        closed="ClosedError",
        child="ForkedError",
    ),
    "inspect_image": Call(
        "reading an image",
        "inspect_image",
        lambda it: pgalloc.inspect_image(it.image),
        descriptors="EMFILE",
    ),
    "verify_image": Call(
        "reading an image",
        "verify_image",
        lambda it: pgalloc.verify_image(it.image),
        descriptors="EMFILE",
    ),
    # --- sharing: the owner ----------------------------------------------------------------------
    "serve": Call(
        "serving",
        "MemoryFile.serve Server.close Server.closed",
        lambda it: it.file.serve(it.folder / "other", limits=pgalloc.Limits()).close(),
        "file",
        closed="ClosedError",
        child="ForkedError",
        descriptors="EMFILE",
    ),
    "leases": Call(
        "leases",
        "MemoryFile.leases",
        lambda it: it.file.leases(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "drop_unclaimed": Call(
        "leases",
        "MemoryFile.drop_unclaimed",
        lambda it: it.file.drop_unclaimed(),
        "file",
        closed="ClosedError",
        child="ForkedError",
    ),
    "send": Call("sending", "Allocation", lambda it: _send(it.pages), "file"),
    "receive": Call(
        "receiving",
        "Allocation",
        _receive,
        "file",
        closed="SharingError",
    ),
    "share": Call(
        "objects in pages",
        "share Shared.get Shared.nbytes Shared.release",
        lambda it: pgalloc.share({"a": 1}, file=it.file).release(),
        "file",
        closed="ClosedError",
    ),
    "get": Call(
        "reading objects in pages",
        "Shared Shared.get Shared.nbytes",
        lambda it: (it.shared.get(), it.shared.nbytes),
        "file",
    ),
    "SharedList": Call(
        "objects in pages",
        "SharedList SharedList.release",
        lambda it: SharedList([b"a", 1], file=it.file).release(),
        "file",
        closed="ClosedError",
    ),
    "read a list": Call(
        "reading objects in pages",
        "SharedList.count SharedList.index SharedList.nbytes",
        lambda it: (it.items[0], it.items.count(1), it.items.index(1), it.items.nbytes),
        "file",
    ),
    "pgalloc.array": Call(
        "objects in the process's own file", "array", lambda it: pgalloc.array([1, 2])
    ),
    "pgalloc.share": Call(
        "objects in the process's own file", "share", lambda it: pgalloc.share({"a": 1})
    ),
    # --- sharing: a peer -------------------------------------------------------------------------
    "connect": Call(
        "connecting",
        "connect PeerFile.close",
        lambda it: (
            it.server,
            pgalloc.connect(it.folder / "file", timeout=it.patience_s).close(),
        ),
        descriptors="EMFILE",
    ),
    "peer: allocate": Call(
        "a peer asks",
        "PeerFile.allocate",
        lambda it: it.peer.allocate(PAGE_SIZE),
        "peer",
        closed="ClosedError",
    ),
    "peer: allocate and read": Call(
        "a peer asks",
        "PeerFile.allocate",
        lambda it: it.peer.allocate(PAGE_SIZE, reader=len),
        "peer",
        closed="ClosedError",
    ),
    "peer: array": Call(
        "a peer asks",
        "PeerFile.array PeerFile.array_like",
        lambda it: (it.peer.array(10), it.peer.array_like([1, 2])),
        "peer",
        closed="ClosedError",
    ),
    "peer: allocate_range": Call(
        "a peer's bare ranges",
        "PeerFile.allocate_range PeerFile.dec_ref",
        lambda it: it.peer.dec_ref(it.peer.allocate_range(PAGE_SIZE)),
        "peer",
        bare=True,
        closed="ClosedError",
    ),
    "peer: inc_ref": Call(
        "a peer's bare ranges",
        "PeerFile.inc_ref PeerFile.dec_ref",
        lambda it: _counted(it.peer, it.leased.range),
        "peer",
        bare=True,
        closed="ClosedError",
    ),
    "peer: map_range": Call(
        "a peer's handles",
        "PeerFile.map_range",
        lambda it: it.peer.map_range(it.leased.range),
        "peer",
        closed="ClosedError",
    ),
    "peer: clone": Call(
        "a peer's handles",
        "Allocation.clone Allocation.slice",
        lambda it: (it.leased.clone(), it.leased.slice(0, PAGE_SIZE)),
        "peer",
        closed="ClosedError",
    ),
    "peer: view": Call(
        "a peer's handles",
        "Allocation.view",
        lambda it: it.leased.view(),
        "peer",
        closed="ClosedError",
    ),
    "peer: has_unique_ref": Call(
        "a peer asks",
        "PeerFile.has_unique_ref",
        lambda it: it.peer.has_unique_ref(it.leased.range),
        "peer",
        closed="ClosedError",
    ),
    "peer: decommit": Call(
        "a peer asks",
        "PeerFile.decommit Allocation.decommit",
        lambda it: (it.peer.decommit(it.leased.range), it.leased.decommit()),
        "peer",
        closed="ClosedError",
    ),
    "peer: pin": Call(
        "a peer asks",
        "Allocation.pin",
        lambda it: _pin(it.leased),
        "peer",
        closed="ClosedError",
    ),
    "peer: usage": Call(
        "a peer asks",
        "PeerFile.usage",
        lambda it: it.peer.usage(),
        "peer",
        closed="ClosedError",
    ),
    "peer: flush": Call("a peer's end", "PeerFile.flush", lambda it: it.peer.flush(), "peer"),
    "peer: close": Call("a peer's end", "PeerFile.close", lambda it: it.peer.close(), "peer"),
    "peer: labels": Call(
        "a peer's labels",
        "PeerFile.capacity PeerFile.closed PeerFile.leased PeerFile.readonly PeerFile.restore_id",
        lambda it: (
            it.peer.capacity,
            it.peer.closed,
            it.peer.leased,
            it.peer.readonly,
            it.peer.restore_id,
        ),
        "peer",
    ),
    "peer: fileno": Call(
        "a peer's handles",
        "PeerFile.fileno PeerFile.total_size",
        lambda it: (it.peer.fileno(), it.peer.total_size),
        "peer",
        closed="ClosedError",
    ),
    # --- caches ----------------------------------------------------------------------------------
    "Cache": Call(
        "making a cache", "Cache Cache.close", lambda it: Cache("4M").close(), descriptors="EMFILE"
    ),
    "from_snapshot": Call(
        "making a cache", "Cache.from_snapshot", _from_snapshot, descriptors="EMFILE"
    ),
    "cache: get": Call(
        "reading a cache",
        "Cache.get Cache.get_bytes Cache.get_many",
        lambda it: (
            it.cache.get("key"),
            it.cache.get_bytes("key"),
            it.cache.get("none"),
            it.cache.get_many(["key", "none"]),
        ),
        "cache",
        closed="ClosedError",
    ),
    "cache: setdefault": Call(
        "reading a cache",
        "Cache.setdefault",
        lambda it: it.cache.setdefault("key", b"value"),
        "cache",
        closed="ClosedError",
    ),
    "cache: items": Call(
        "reading a cache",
        "Cache.items Cache.keys Cache.values",
        lambda it: (list(it.cache.items()), list(it.cache.keys()), list(it.cache.values())),
        "cache",
        closed="ClosedError",
    ),
    "cache: put": Call(
        "changing a cache",
        "Cache.put Cache.update Cache.put_many Cache.add Cache.touch",
        lambda it: (
            it.cache.put("key", b"value", tag="tag"),
            it.cache.update(key=b"v" * 9000),
            it.cache.put_many({"key": b"value"}, expire=60),
            it.cache.add("key", b"other"),
            it.cache.touch("key"),
        ),
        "cache",
        closed="ClosedError",
    ),
    "cache: incr": Call(
        "changing a cache",
        "Cache.incr",
        lambda it: it.cache.incr("counter", 2, initial=5),
        "cache",
        closed="ClosedError",
    ),
    "cache: pop": Call(
        "changing a cache",
        "Cache.pop",
        lambda it: (it.cache.pop("none", None), it.cache.put("key", b"value")),
        "cache",
        closed="ClosedError",
    ),
    "cache: evict": Call(
        "changing a cache",
        "Cache.evict Cache.evict_tag Cache.clear Cache.popitem",
        lambda it: (
            it.cache.put("key", b"value"),
            it.cache.evict(1),
            it.cache.evict_tag("tag"),
            it.cache.put("key", b"value"),
            it.cache.popitem(),
            it.cache.clear(),
            it.cache.put("key", b"value"),
        ),
        "cache",
        closed="ClosedError",
    ),
    "cache: stats": Call(
        "looking at a cache",
        "Cache.stats Cache.currsize",
        lambda it: (it.cache.stats(), it.cache.currsize, len(it.cache), "key" in it.cache),
        "cache",
        closed="ClosedError",
    ),
    "cache: labels": Call(
        "a cache's labels",
        "Cache.maxsize Cache.policy Cache.file Cache.closed",
        lambda it: (it.cache.maxsize, it.cache.policy, it.cache.file, it.cache.closed),
        "cache",
    ),
    "cached": Call(
        "cached functions",
        "cached",
        lambda it: pgalloc.cached(it.cache)(_result)(),
        "cache",
        closed="ClosedError",
    ),
    "call a cached function": Call(
        "cached functions",
        "cached",
        lambda it: (it.cached.cache_clear(), it.cached(1), it.cached(1), it.cached.cache_info()),
        "cache",
        closed="ClosedError",
    ),
    "cache: serve": Call(
        "serving",
        "Cache.serve",
        lambda it: it.cache.serve(it.folder / "other").close(),
        "cache",
        closed="ClosedError",
        child="ForkedError",
        descriptors="EMFILE",
    ),
    "connect a reader": Call(
        "connecting",
        "Cache.connect",
        lambda it: (it.reader, Cache.connect(it.folder / "cache", timeout=it.patience_s).close()),
        descriptors="EMFILE",
    ),
    "reader: get": Call(
        "reading another's cache",
        "",
        lambda it: (it.reader.get("key"), it.reader.get_bytes("key"), it.reader.get("none")),
        "reader",
        closed="ClosedError",
    ),
    # --- accounting ------------------------------------------------------------------------------
    "Ledger": Call(
        "accounting",
        "Ledger Ledger.inc Ledger.dec Ledger.move Ledger.copy Ledger.total Ledger.memcg_ids",
        lambda it: (
            it.ledger.inc(1, MemoryKind.MAPPED),
            it.ledger.move(1, MemoryKind.ANONYMOUS, MemoryKind.MAPPED),
            it.ledger.dec(1, MemoryKind.ANONYMOUS),
            it.ledger.copy(),
            it.ledger.total(),
            it.ledger.memcg_ids,
        ),
    ),
    "memory_accounting": Call(
        "accounting",
        "memory_accounting total_memory",
        lambda it: (pgalloc.memory_accounting().copy(), pgalloc.total_memory(2, 1)),
    ),
    # --- pressure --------------------------------------------------------------------------------
    "Monitor": Call(
        "monitors",
        "pressure.Monitor pressure.Monitor.close pressure.ManualSource",
        lambda it: pressure.Monitor(sources=[pressure.ManualSource()]).close(),
        descriptors="EMFILE",
    ),
    "default_monitor": Call(
        "monitors",
        "pressure.default_monitor",
        lambda it: pressure.default_monitor().subscribe(_ignore)(),
        descriptors="EMFILE",
    ),
    "subscribe": Call(
        "subscribing",
        "pressure.Monitor.subscribe",
        _subscribe,
        "monitor",
        closed="ClosedError",
        child="ForkedError",
    ),
    "events": Call(
        "subscribing",
        "pressure.Monitor.events pressure.EventStream.close pressure.EventStream.aclose",
        lambda it: (it.monitor.events().close(), _run(it.monitor.events().aclose())),
        "monitor",
        closed="ClosedError",
        child="ForkedError",
    ),
    "Monitor.info": Call(
        "subscribing",
        "pressure.Monitor.info",
        lambda it: it.monitor.info(),
        "monitor",
        closed="ClosedError",
        child="ForkedError",
    ),
    "Monitor.stats": Call(
        "a monitor's figures",
        "pressure.Monitor.stats pressure.Monitor.closed",
        lambda it: (it.monitor.stats(), it.monitor.closed),
        "monitor",
    ),
    "signal": Call(
        "signalling",
        "pressure.ManualSource.signal pressure.ManualSource.take",
        lambda it: (it.source.signal(), it.source.take(0)),
        "source",
        closed="ClosedError",
        child="ForkedError",
    ),
    "ManualSource": Call(
        "monitors",
        "pressure.ManualSource.close",
        lambda it: pressure.ManualSource().close(),
        descriptors="EMFILE",
    ),
    "PressureLevelListener": Call(
        "monitors",
        "pressure.PressureLevelListener pressure.PressureLevelListener.stop",
        _listen,
        descriptors="EMFILE",
    ),
    "sources": Call(
        "figures of pressure",
        "pressure.PressureLevelListener.sources",
        lambda it: it.listener.sources,
    ),
    "configure": Call("figures of pressure", "pressure.configure", lambda it: pressure.configure()),
    "pressure.info": Call(
        "figures of pressure",
        "pressure.info pressure.find_memory_cgroup",
        lambda it: (pressure.info(), pressure.find_memory_cgroup()),
    ),
}
