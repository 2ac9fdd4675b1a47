"""SharedList: many samples in shared pages."""

from __future__ import annotations

import operator
import pickle
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from pgalloc.allocation import Allocation
from pgalloc.memory_file import MemoryFile
from pgalloc.page_stream import PageStream
from pgalloc.shared import ALIGNMENT, InPages, checked_file, head_of, register_kind
from pgalloc.sharing import PeerFile

_ENTRY = struct.Struct("<QB")  # of the index: where an item ends, and what it is
_TWO_ENTRIES = struct.Struct("<QBQB")
_RAW, _PICKLED, _ARRAY = 0, 1, 2


class SharedList(InPages, Sequence[Any]):
    """Many samples in shared pages: a sequence that cannot be changed, sent in constant time.

    Bytes-like items come back as read-only memoryviews of the pages, numpy arrays as read-only
    arrays on them; other items are pickled, and made anew each time they are read. For data sets
    whose list of samples would otherwise be copied into every worker, or touched there page by page
    by reference counting.

    ``items`` is any iterable. What it yields goes to the pages at once, so that a generator's
    samples are never in memory together.
    """

    _kind = b"pglist\0\1"

    def __init__(self, items: Iterable[Any], *, file: MemoryFile | PeerFile | None = None) -> None:
        super().__init__(_written(items, PageStream(checked_file(file))))

    def _open(self, pages: Allocation) -> None:
        super()._open(pages)
        self._index = self._part(0)
        self._flat = self._part(1)
        self._length = max(len(self._index) // _ENTRY.size - 1, 0)
        self._arrays: Any = None  # made when an array is read

    def __len__(self) -> int:
        self._need()
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: Any) -> Any:
        self._need()
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._length))]
        index = operator.index(index)
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError("SharedList index out of range")
        start, _, end, kind = _TWO_ENTRIES.unpack_from(self._index, index * _ENTRY.size)
        if kind == _ARRAY:
            return self._array(end)
        item = self._flat[start:end]
        return item if kind == _RAW else pickle.loads(item)

    def _array(self, end: int) -> Any:
        if self._arrays is None:
            from pgalloc.sharing.arrays.items import Reader

            self._arrays = Reader(self._flat, self._part(2))
        return self._arrays.read(end)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self[index]

    def release(self) -> None:
        """As Shared.release()."""
        self._index = self._flat = memoryview(b"")
        self._arrays = None
        super().release()

    def __repr__(self) -> str:
        if self._pages.released:
            return "<SharedList released>"
        return f"<SharedList of {len(self)} items, {self.nbytes} bytes>"


def _written(items: Iterable[Any], flat: PageStream) -> Allocation:
    """Pages with a head, the items, the index and the dtypes of arrays."""
    index = PageStream(flat._file)
    dtypes: dict[Any, int] = {}
    flat.write(bytes(len(head_of(SharedList._kind, [(0, 0)] * 3))))
    first = flat.align(ALIGNMENT)
    index.write(_ENTRY.pack(0, _RAW))
    for item in items:
        kind = _write_item(item, flat, dtypes)
        index.write(_ENTRY.pack(flat.tell() - first, kind))
    parts = [(flat.align(ALIGNMENT), index.tell()), (first, flat.tell() - first)]
    flat.move(index)
    pickled = pickle.dumps(list(dtypes), 5)
    parts.append((flat.tell(), len(pickled)))
    flat.write(pickled)
    return flat.finish(head_of(SharedList._kind, parts))


def _write_item(item: Any, flat: PageStream, dtypes: dict[Any, int]) -> int:
    if isinstance(item, (bytes, bytearray, memoryview)):
        if isinstance(item, memoryview) and not item.c_contiguous:
            item = item.tobytes()
        flat.write(item)
        return _RAW
    numpy: Any = sys.modules.get("numpy")  # without it there are no arrays
    if numpy is not None and isinstance(item, numpy.ndarray):
        from pgalloc.sharing.arrays import items

        if items.can_write(item):
            items.write(item, flat, dtypes)
            return _ARRAY
    pickle.Pickler(flat, 5).dump(item)
    return _PICKLED


register_kind(SharedList)
