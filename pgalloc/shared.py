"""Objects in shared pages: :func:`share` for one of any kind, :func:`array` for an array.

What they hold lies in pages once, for all processes that have it. They are sent by multiprocessing
in constant time, whatever their size, and what is read from them by way of buffers (arrays,
bytes-like objects) lies in those pages: read-only, without a copy.

What was pickled is unpickled again where it is read: as with everything that multiprocessing
sends, only processes that trust each other should.
"""

from __future__ import annotations

import io
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgalloc import _core, fork, memory_file
from pgalloc.allocation import Allocation, whole_pages
from pgalloc.errors import ClosedError, SharingError
from pgalloc.sharing import PeerFile, transport

if TYPE_CHECKING:
    from typing import Self

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

T = TypeVar("T")

ALIGNMENT = 64  # of buffers: a cache line, and what vector instructions want
_HEAD = struct.Struct("<8sQQ")  # what it is, how many parts, where their table is
_PART = struct.Struct("<QQ")  # start, length


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


def checked_file(file: Any) -> Any:
    """A file that pages can be allocated in; None is the one that all of this process share."""
    if file is None:
        return _default.file()
    if not isinstance(file, (memory_file.MemoryFile, PeerFile)):
        raise TypeError(f"file must be a MemoryFile or a PeerFile, not {type(file).__name__}")
    return file


def head_of(kind: bytes, places: list[tuple[int, int]]) -> bytes:
    """What begins such pages: a head, and a table of where the parts are, and how long."""
    table = _aligned(_HEAD.size)
    head = bytearray(table + _PART.size * len(places))
    _HEAD.pack_into(head, 0, kind, len(places), table)
    for index, place in enumerate(places):
        _PART.pack_into(head, table + index * _PART.size, *place)
    return bytes(head)


def _write(parts: list[Any], kind: bytes, file: MemoryFile | PeerFile) -> Allocation:
    """One allocation with a head and the parts."""
    end = len(head_of(kind, [(0, 0)] * len(parts)))
    places = []
    for part in parts:
        start = _aligned(end)
        end = start + part.nbytes
        places.append((start, part.nbytes))
    size = whole_pages(end)
    reservation = _core.CommitReservation(size)
    try:
        pages = file.allocate(size, huge=None)
        pages._write(0, head_of(kind, places))
        for (start, length), part in zip(places, parts, strict=True):
            if length:
                pages._write(start, part)
    finally:
        reservation.end()
    return pages


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


class InPages:
    """Parts in an allocation of their own. A copy is another handle on the same pages."""

    _kind = b""

    def __init__(self, pages: Allocation) -> None:
        self._open(pages)

    def _open(self, pages: Allocation) -> None:
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

    def __copy__(self) -> Self:
        self._need()
        return _opened(type(self), self._pages.clone())

    def __deepcopy__(self, memo: Any) -> Self:
        return self.__copy__()  # what is in the pages cannot be changed

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} can only be pickled on its way to another process, by "
            "multiprocessing, concurrent.futures, joblib (loky) or multiprocess: to keep it, "
            "pickle what it holds"
        )


_Kind = TypeVar("_Kind", bound=InPages)


def _opened(kind: type[_Kind], pages: Allocation) -> _Kind:
    result = kind.__new__(kind)
    result._open(pages)
    return result


def _received(kind: type[_Kind], *token: Any) -> _Kind:
    return _opened(kind, transport.receive(*token))


def _reduce(thing: InPages) -> Any:
    return transport.reduce_to(_received, (type(thing),), thing._pages, "a copy.copy() of it")


def register_kind(kind: type[InPages]) -> None:
    """Have objects of this class travel."""
    transport.register(kind, _reduce)


class Shared(InPages, Generic[T]):
    """An object in shared pages. Get one from :func:`share`."""

    _kind = b"pgobject"

    def get(self) -> T:
        """The object, made anew; its buffers are read-only views of the pages."""
        self._need()
        parts = [self._part(index) for index in range(self._count)]
        result: T = pickle.loads(parts[0], buffers=parts[1:])
        return result

    def __repr__(self) -> str:
        return f"<Shared {self.nbytes} bytes>"


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
    pickle.Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    return Shared(_write(parts, Shared._kind, checked_file(file)))


def array(data: Any, *, dtype: Any = None) -> Any:
    """A numpy array in shared pages with the contents of ``data``: anything numpy.array() takes.

    As MemoryFile.array_like(), in a MemoryFile that all of this process share.
    """
    from pgalloc.sharing.arrays import copy_of

    return copy_of(_default.file(), data, dtype, {})


register_kind(Shared)
