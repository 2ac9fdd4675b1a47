"""Objects in shared pages: :func:`share` for one of any kind, SharedList for many small ones.

What they hold lies in pages once, for all processes that have it. They are sent by multiprocessing
in constant time, whatever their size, and what is read from them by way of buffers (arrays,
bytes-like objects) lies in those pages: read-only, without a copy.

What was pickled is unpickled again where it is read: as with everything that multiprocessing
sends, only processes that trust each other should.
"""

from __future__ import annotations

import io
import operator
import pickle
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pgalloc import _core, fork, memory_file
from pgalloc.allocation import Allocation
from pgalloc.errors import ClosedError, SharingError
from pgalloc.sharing import PeerFile, transport

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

T = TypeVar("T")

_ALIGNMENT = 64  # of buffers: a cache line, and what vector instructions want
_HEAD = struct.Struct("<8sQQ")  # what it is, how many parts, where their table is
_PART = struct.Struct("<QQ")  # start, length
_OBJECT = b"pgobject"
_LIST = b"pglist\0\0"


class _Default:
    """The file that objects are shared in, unless another one is given. For :mod:`pgalloc.fork`."""

    def __init__(self) -> None:
        # Reentrant, and held for an assignment only: a signal handler may share something, too.
        self._lock = threading.RLock()
        self._file: MemoryFile | None = None

    def file(self) -> MemoryFile:
        """The file, which is made when it is first needed."""
        file = self._file
        if file is not None and not file.closed:
            return file
        made = memory_file.MemoryFile()
        with self._lock:
            if self._file is None or self._file.closed:
                self._file = made
                fork.register(self)
                return made
            file = self._file
        made.close()  # another thread was first
        return file

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do, there is no thread here."""

    def resume(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do."""

    def reset_in_child(self) -> None:
        """In a forked child: it makes one of its own."""
        self._lock = threading.RLock()  # another thread of the parent may have the old one
        self._file = None


_default = _Default()


def _write(parts: list[Any], kind: bytes, file: MemoryFile | PeerFile | None) -> Allocation:
    """One allocation with a head, a table of the parts, and the parts."""
    table = _aligned(_HEAD.size)
    end = table + _PART.size * len(parts)
    places = []
    for part in parts:
        start = _aligned(end)
        end = start + part.nbytes
        places.append((start, part.nbytes))
    size = -(-end // _core.PAGE_SIZE) * _core.PAGE_SIZE
    reservation = _core.CommitReservation(size)
    try:
        pages = (_default.file() if file is None else file).allocate(size)
        head = bytearray(table + _PART.size * len(parts))
        _HEAD.pack_into(head, 0, kind, len(parts), table)
        for index, place in enumerate(places):
            _PART.pack_into(head, table + index * _PART.size, *place)
        pages._write(0, head)
        for (start, length), part in zip(places, parts, strict=True):
            if length:
                pages._write(start, part)
    finally:
        reservation.end()
    return pages


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _checked_file(file: Any) -> Any:
    if file is not None and not isinstance(file, (MemoryFile, PeerFile)):
        raise TypeError(f"file must be a MemoryFile or a PeerFile, not {type(file).__name__}")
    return file


class _InPages:
    """Parts in an allocation of their own."""

    _kind = b""

    def __init__(self, pages: Allocation) -> None:
        if not isinstance(pages, Allocation):
            raise TypeError("use pgalloc.share()")
        self._pages = pages
        view = pages.view(readonly=True)
        kind, count, table = _HEAD.unpack_from(view)
        if kind != self._kind or table + count * _PART.size > len(view):
            raise SharingError(f"these pages hold no {type(self).__name__}")
        self._view = view
        self._count = count
        self._table = table

    def _part(self, index: int) -> memoryview:
        start, length = _PART.unpack_from(self._view, self._table + index * _PART.size)
        return self._view[start : start + length]

    @property
    def nbytes(self) -> int:
        """Bytes of pages that it takes."""
        return self._pages.nbytes

    def release(self) -> None:
        """Let go of the pages, as far as this process is concerned.

        What was read from them stays as long as it is held.
        """
        self._view = memoryview(b"")
        self._pages.release()

    def _need(self) -> None:
        if self._pages.released:
            raise ClosedError(f"the {type(self).__name__} has been released")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} can only be pickled on its way to another process, by "
            "multiprocessing or concurrent.futures"
        )


class _Pickler(pickle.Pickler):
    """Takes what lies in shared pages already by value: its contents, not its place."""

    def reducer_override(self, obj: Any) -> Any:
        by_value = getattr(type(obj), "_reduce_by_value", None)
        return NotImplemented if by_value is None else by_value(obj)


class Shared(_InPages, Generic[T]):
    """An object in shared pages. Get one from :func:`share`."""

    _kind = _OBJECT

    def get(self) -> T:
        """The object, made anew; its buffers are read-only views of the pages."""
        self._need()
        parts = [self._part(index) for index in range(self._count)]
        result: T = pickle.loads(parts[0], buffers=parts[1:])
        return result

    def __repr__(self) -> str:
        return f"<Shared {self.nbytes} bytes>"


def _pickled(item: Any) -> memoryview:
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(item)
    return stream.getbuffer()


def share(obj: T, *, file: MemoryFile | PeerFile | None = None) -> Shared[T]:
    """Put an object into shared pages: pickled (protocol 5), its buffers as they are.

    The result is sent to other processes in constant time; ``get()`` gives an equal object there,
    whose large parts (numpy arrays, pandas columns, whatever hands pickle its buffers) lie in the
    shared pages, read-only.

    ``file``: where the pages are to be; None for a MemoryFile that all of this process share.
    Raises what pickling raises, OutOfMemoryError.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    return Shared(_write(parts, _OBJECT, _checked_file(file)))


class SharedList(_InPages, Sequence[Any]):
    """Many samples in shared pages: a sequence that cannot be changed, sent in constant time.

    Bytes-like items come back as read-only memoryviews of the pages; others are pickled, and made
    anew each time they are read. For data sets whose list of samples would otherwise be copied
    into every worker, or touched there page by page by reference counting.
    """

    _kind = _LIST
    _RAW, _PICKLED = 0, 1

    def __init__(self, items: Iterable[Any], *, file: MemoryFile | PeerFile | None = None) -> None:
        _checked_file(file)
        flat = bytearray()
        offsets = bytearray(8)
        kinds = bytearray()
        for item in items:
            raw = isinstance(item, (bytes, bytearray, memoryview))
            kinds.append(self._RAW if raw else self._PICKLED)
            flat += item if raw else _pickled(item)
            offsets += struct.pack("<Q", len(flat))
        parts = [memoryview(offsets), memoryview(kinds), memoryview(flat)]
        self._open(_write(parts, _LIST, file))

    def _open(self, pages: Allocation) -> None:
        super().__init__(pages)
        self._offsets = self._part(0).cast("Q")
        self._kinds = self._part(1)
        self._flat = self._part(2)

    def __len__(self) -> int:
        self._need()
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: Any) -> Any:
        self._need()
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self._kinds)))]
        index = operator.index(index)
        kind = self._kinds[index]  # raises IndexError as any sequence
        if index < 0:
            index += len(self._kinds)
        item = self._flat[self._offsets[index] : self._offsets[index + 1]]
        return item if kind == self._RAW else pickle.loads(item)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self[index]

    def release(self) -> None:
        """As Shared.release()."""
        self._offsets = memoryview(b"").cast("Q")
        self._kinds = self._flat = memoryview(b"")
        super().release()

    def __repr__(self) -> str:
        if self._pages.released:
            return "<SharedList released>"
        return f"<SharedList of {len(self)} items, {self.nbytes} bytes>"


def _reduce_shared(shared: Shared[Any]) -> Any:
    shared._need()
    return _receive_shared, transport.reduce(shared._pages)[1]


def _receive_shared(*token: bytes) -> Shared[Any]:
    return Shared(transport.receive(*token))


def _reduce_list(items: SharedList) -> Any:
    items._need()
    return _receive_list, transport.reduce(items._pages)[1]


def _receive_list(*token: bytes) -> SharedList:
    items = SharedList.__new__(SharedList)
    items._open(transport.receive(*token))
    return items


transport.register(Shared, _reduce_shared)
transport.register(SharedList, _reduce_list)
