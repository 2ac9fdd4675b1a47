"""Allocation: a handle that owns a reference on pages, and is a buffer over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgalloc import _core
from pgalloc.errors import ClosedError, RangeError
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.memory_file import MemoryFile


def whole_pages(nbytes: int) -> int:
    """The bytes of the pages that so many bytes need: one page at least."""
    return max(-(-nbytes // _core.PAGE_SIZE), 1) * _core.PAGE_SIZE


class Allocation(_core.Allocation, Uncopyable):
    """Owns one reference on every page of :attr:`range`.

    It supports the buffer protocol: ``memoryview(a)``, ``numpy.frombuffer(a)``,
    ``file.readinto(a)``. Whatever was made from it keeps the pages alive by itself; :meth:`release`
    and closing the file never take memory away under a live view.

    Get one from :meth:`MemoryFile.allocate`. ``Allocation(file, range)`` takes over a reference
    that the caller owns on each page of ``range``.
    """

    __slots__ = ()

    _instead_of_copying = (
        "clone() gives another handle on the same pages, bytes(allocation) a copy of the contents"
    )
    _instead_of_pickling = (
        "it can only be pickled on its way to another process, by multiprocessing, "
        "concurrent.futures, joblib (loky) or multiprocess; bytes(allocation) is a copy of the "
        "contents"
    )

    if TYPE_CHECKING:

        @property
        def file(self) -> MemoryFile:
            """The MemoryFile the pages belong to."""

    @classmethod
    def adopt(cls, memory_file: MemoryFile, range: _core.FileRange) -> Allocation:
        """Take over a reference on each page of ``range`` that a restored image recorded.

        Raises RangeError unless the whole range is allocated, RefCountError if a page has no such
        reference left.
        """
        if not isinstance(memory_file, _core.MemoryFile):
            raise TypeError(f"expected a MemoryFile, not {type(memory_file).__name__}")
        adopted: Allocation = cls._adopt(memory_file, range)
        if cls.__init__ is not Allocation.__init__:
            adopted.__init__(memory_file, range)  # type: ignore[misc]
        return adopted

    def clone(self) -> Allocation:
        """Another handle on the same pages, with a reference of its own.

        Raises ClosedError after release(), ForkedError in a forked child.
        """
        other: Allocation = self._share(0, self.nbytes)
        return other

    def slice(self, start: int, stop: int) -> Allocation:
        """Another handle on the bytes ``[start, stop)`` of this one, with a reference of its own.

        Raises RangeError unless both lie on page borders inside, and start < stop.
        """
        if not 0 <= start < stop <= self.nbytes:
            raise RangeError(f"[{start}, {stop}) is not a part of {self.nbytes} bytes")
        part: Allocation = self._share(start, stop)
        return part

    def decommit(self) -> None:
        """Give the pages back to the kernel, keeping the range: it reads as zero afterwards.

        Raises ClosedError after release(), OSError when the kernel refuses.
        """
        if self.released:
            raise ClosedError("the Allocation has been released")
        self.file.decommit(self.range)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = " released" if self.released else ""
        return f"<Allocation {self.range!r}, {self.nbytes} bytes{state}>"


_core.set_allocation_class(Allocation)
