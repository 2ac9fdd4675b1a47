"""What the owner of pages does for one peer, and what the peer holds meanwhile.

Thread safety: externally synchronised (the broker's lock).

Invariants:
  1. A peer uses only files it was let into, and touches only pages it has leases on. It gets a
     SharingError or RefCountError for anything else, and nothing has changed then.
  2. Everything a peer holds is in its session, and goes with it (:meth:`Session.end`).
  3. No step takes longer than PIECE_BYTES of pages need, whatever a peer asks for.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.enums import Direction, MemoryKind
from pgalloc.errors import ClosedError, ForkedError, RefCountError, SharingError
from pgalloc.sharing import files, protocol
from pgalloc.sharing.offers import Offers
from pgalloc.sharing.protocol import Op

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

PIECE_BYTES = 64 << 20
"""What is decommitted at once: about 10 ms."""

Lookup = Callable[[bytes], "Value | None"]
"""A served cache: the value of an encoded key."""


class Value(NamedTuple):
    """A value of a cache: bytes ``[start, stop)`` of pages; ``view`` keeps them as they are."""

    pages: Allocation
    start: int
    stop: int
    view: memoryview


class Scope(NamedTuple):
    """What the peers of one listener may use."""

    file: MemoryFile | None = None
    readonly: bool = False
    lookup: Lookup | None = None


class Answer(NamedTuple):
    """To a request: bytes, and descriptors to close once they are sent."""

    payload: bytes = b""
    descriptors: tuple[int, ...] = ()


class _Share:
    """One file, as far as one peer is concerned."""

    def __init__(self, file: MemoryFile) -> None:
        self.file = file
        self.table = _core.LeaseTable(file)
        self.unpinned: dict[tuple[int, int], Allocation] = {}
        self.views: dict[tuple[int, int], memoryview] = {}

    def release(self, start: int, end: int) -> None:
        """The peer has let go of these pages."""
        if self.unpinned:
            for pages in list(self.unpinned):
                if pages[0] < end and start < pages[1]:
                    self.pin(_core.FileRange(*pages))
        self.table.remove(start, end)
        if self.views:
            self._drop_views(start, end)

    def _drop_views(self, start: int, end: int) -> None:
        for pages in list(self.views):
            overlaps = pages[0] < end and start < pages[1]
            if overlaps and not self.table.overlaps(_core.FileRange(*pages)):
                del self.views[pages]

    def need(self, range: _core.FileRange) -> None:
        """Raise RefCountError unless the peer holds all of it."""
        if not self.table.has(range) and (range.start, range.end) not in self.unpinned:
            raise RefCountError("the peer has no lease on all of these pages")

    def unpin(self, range: _core.FileRange) -> None:
        """Allow the contents to be discarded: the lease becomes an unpinned handle."""
        if (range.start, range.end) in self.unpinned:
            return
        self.table.hand_over(range)
        pages = Allocation(self.file, range)
        pages.unpin()
        self.unpinned[range.start, range.end] = pages

    def pin(self, range: _core.FileRange) -> bool:
        """Undo that. Whether the contents are what they were."""
        pages = self.unpinned.pop((range.start, range.end), None)
        if pages is None:
            self.need(range)
            return True
        intact = pages.pin()
        self.table.add(pages._disown())
        return intact

    def end(self) -> None:
        """Give back what the peer held: it has gone."""
        for pages in self.unpinned.values():
            pages.release()
        self.unpinned.clear()
        self.views.clear()
        self.table.drop_all()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that the peer holds."""
        return self.table.nbytes + sum(pages.nbytes for pages in self.unpinned.values())


class Session:
    """One peer. Ask :meth:`answer`, and iterate over what it gives until there is an Answer."""

    def __init__(self, offers: Offers, scope: Scope, pid: int, uid: int) -> None:
        self._offers = offers
        self._scope = scope
        self._shares: dict[int, _Share] = {}  # of files the peer holds something of
        self._known: set[int] = set()  # files it was let into
        self._forked = False
        self._knows_all = False  # from the owner itself: a child knows all files its parent had
        self.pid = pid
        self.uid = uid
        self.since = time.time()

    @classmethod
    def of_child(cls, offers: Offers, leases: list[tuple[int, _core.LeaseTable]]) -> Session:
        """A forked child, which has leases from birth."""
        session = cls(offers, Scope(), 0, os.getuid())
        session._forked = session._knows_all = True
        for name, table in leases:
            if table.nbytes:
                with contextlib.suppress(ClosedError):  # closed since: nothing is held there
                    session._share(files.find(name)).table = table
        return session

    def fork(self) -> Session:
        """A child of the peer, with the leases that the peer has now."""
        child = Session(self._offers, self._scope, 0, self.uid)
        child._forked, child._knows_all = True, self._knows_all
        child._known |= self._known
        try:
            for share in self._shares.values():
                if not share.file.closed:
                    child._share(share.file).table.copy_from(share.table)
        except BaseException:
            child.end()
            raise
        return child

    def answer(self, operation: int, payload: bytes) -> Generator[Answer | None]:
        """Do what is asked for, step by step; the last step gives the answer."""
        handler = _HANDLERS.get(operation)
        if handler is None:
            raise protocol.ProtocolError(f"unknown request {operation}")
        try:
            yield from handler(self, payload)
        finally:
            self._tidy()

    def nbytes(self, file_id: int) -> int:
        """Bytes of one file's pages that the peer holds."""
        share = self._shares.get(file_id)
        return 0 if share is None else share.nbytes

    def end(self) -> None:
        """Give back what the peer held: it has gone."""
        for share in self._shares.values():
            share.end()
        self._shares.clear()

    # --- what is asked for -----------------------------------------------------------------------

    def _share(self, file: MemoryFile) -> _Share:
        share = self._shares.get(file._id)
        if share is None:
            share = self._shares[file._id] = _Share(file)
            self._known.add(file._id)
        return share

    def _tidy(self) -> None:
        """Forget files of which nothing is held: they may go."""
        for name in [name for name, share in self._shares.items() if share.nbytes == 0]:
            del self._shares[name]

    def _find(self, name: int) -> _Share:
        """A file the peer was let into."""
        served = self._scope.file
        if (
            name in self._known or self._knows_all or (served is not None and served._id == name)
        ):  # it may have been closed
            return self._share(files.find(name))
        raise SharingError("the peer has nothing of this file")

    def _find_writable(self, name: int) -> _Share:
        if self._scope.readonly:
            raise PermissionError("these pages are shared for reading only")
        return self._find(name)

    def _open(self, payload: bytes) -> Generator[Answer]:
        (name,) = protocol.fields(protocol.NAME, payload)
        file = self._find(name).file
        mode = os.O_RDONLY if self._scope.readonly else os.O_RDWR
        # A description of its own: read-only stays read-only, wherever it is passed.
        descriptor = os.open(f"/proc/self/fd/{file.fileno()}", mode | os.O_CLOEXEC)
        head = protocol.FILE.pack(name, file.capacity, self._scope.readonly)
        yield Answer(head + file.restore_id.encode()[:1000], (descriptor,))

    def _claim(self, payload: bytes) -> Generator[Answer]:
        pages = self._offers.claim(payload)
        share = self._share(pages.file)
        range = pages.range
        share.table.add(range)
        pages._disown()
        yield Answer(protocol.pack_pages(share.file._id, range))

    def _offer(self, payload: bytes) -> Generator[Answer]:
        name, range = protocol.pages(payload)
        share = self._find_writable(name)
        share.need(range)
        share.file.inc_ref(range)
        pages = Allocation(share.file, range)
        yield Answer(self._offers.add(pages, self.pid, self.uid))

    def _allocate(self, payload: bytes) -> Generator[Answer]:
        name, length, kind, direction, memcg_id = protocol.fields(protocol.ALLOCATE, payload)
        share = self._find_writable(name)
        range = share.file.allocate_range(
            length, kind=MemoryKind(kind), direction=Direction(direction), memcg_id=memcg_id
        )
        share.table.add(range)
        yield Answer(protocol.pack_pages(name, range))

    def _release(self, payload: bytes) -> Generator[Answer]:
        if len(payload) % protocol.PAGES.size:
            raise protocol.ProtocolError("a malformed message")
        for name, start, end in protocol.PAGES.iter_unpack(payload):
            share = self._shares.get(name)
            if share is None:
                raise SharingError("the peer has nothing of this file")
            share.release(start, end)
        yield Answer()

    def _decommit(self, payload: bytes) -> Generator[Answer | None]:
        name, range = protocol.pages(payload)
        share = self._find_writable(name)
        share.need(range)
        start = range.start
        while start < range.end:
            end = min(start + PIECE_BYTES, range.end)
            share.file.decommit(_core.FileRange(start, end))
            start = end
            yield None
            share.need(range)  # anew: the peer may have let go of pages
        yield Answer()

    def _unique(self, payload: bytes) -> Generator[Answer]:
        name, range = protocol.pages(payload)
        share = self._find(name)
        share.need(range)
        yield Answer(bytes([share.file.has_unique_ref(range)]))

    def _unpin(self, payload: bytes) -> Generator[Answer]:
        name, range = protocol.pages(payload)
        self._find_writable(name).unpin(range)
        yield Answer(b"\1")

    def _pin(self, payload: bytes) -> Generator[Answer]:
        name, range = protocol.pages(payload)
        try:
            intact = self._find(name).pin(range)
        except RefCountError:
            if not self._forked:
                raise
            raise ForkedError(
                "this allocation was unpinned when the process forked: it is the parent's"
            ) from None
        yield Answer(bytes([intact]))

    def _usage(self, payload: bytes) -> Generator[Answer]:
        name, memcg_id = protocol.fields(protocol.USAGE, payload)
        usage = self._find(name).file.usage(memcg_id or None)
        yield Answer(protocol.COUNTS.pack(*(usage[kind] for kind in MemoryKind)))

    def _ping(self, payload: bytes) -> Generator[Answer]:
        yield Answer(protocol.PROCESS.pack(os.getpid()))

    def _served(self, payload: bytes) -> Generator[Answer]:
        if self._scope.file is None:
            raise SharingError("nothing is served here")
        has_cache = self._scope.lookup is not None
        yield Answer(protocol.SERVED.pack(self._scope.file._id, has_cache))

    def _value(self, payload: bytes) -> Generator[Answer]:
        if self._scope.lookup is None:
            raise SharingError("no cache is served here")
        value = self._scope.lookup(payload)
        if value is None:
            yield Answer()
            return
        file, range = value.pages.file, value.pages.range
        share = self._share(file)
        file.inc_ref(range)
        share.table.add(range)
        share.views.setdefault((range.start, range.end), value.view)
        yield Answer(protocol.VALUE.pack(file._id, *range, value.start, value.stop))


_HANDLERS: dict[int, Callable[[Session, bytes], Generator[Answer | None]]] = {
    Op.OPEN: Session._open,
    Op.CLAIM: Session._claim,
    Op.OFFER: Session._offer,
    Op.ALLOCATE: Session._allocate,
    Op.RELEASE: Session._release,
    Op.DECOMMIT: Session._decommit,
    Op.UNIQUE: Session._unique,
    Op.UNPIN: Session._unpin,
    Op.PIN: Session._pin,
    Op.USAGE: Session._usage,
    Op.PING: Session._ping,
    Op.SERVED: Session._served,
    Op.VALUE: Session._value,
}
