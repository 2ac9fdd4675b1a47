"""Filling new pages from a reader: all of them, or whole pages as far as it got."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.errors import FillError

Reader = Callable[[memoryview], int | None]
"""Called with the writable rest of the buffer; returns how many bytes it wrote there, like
``file.readinto``. 0 means the end: EOFError."""


def _release_if_unused(view: memoryview) -> None:
    """Make a view useless to a reader that kept it.

    Unless it made something of its own from it: that holds the pages by itself.
    """
    with contextlib.suppress(BufferError):
        view.release()


def _read_once(reader: Reader, rest: memoryview) -> int:
    count = reader(rest)
    if count is None or isinstance(count, bool):
        raise TypeError(f"the reader returned {count!r} instead of a number of bytes")
    count = operator.index(count)
    if count == 0:
        raise EOFError(f"the reader ended {len(rest)} bytes early")
    if not 0 < count <= len(rest):
        raise ValueError(f"the reader returned {count} for a buffer of {len(rest)} bytes")
    return count


# Row B17.
def fill(allocation: Allocation, reader: Reader) -> Allocation:
    """Fill a new allocation, which this call takes over, and return it.

    Raises FillError when the reader fails or ends early; the filled part, rounded down to whole
    pages, is its ``allocation``, and the rest is released.
    """
    filled = 0
    try:
        reservation = _core.CommitReservation(allocation.nbytes)
        view = allocation.view()
    except BaseException:
        allocation.release()
        raise
    try:
        while filled < allocation.nbytes:
            rest = view[filled:]
            try:
                count = _read_once(reader, rest)
                reservation.settle(count)
                filled += count
            finally:
                _release_if_unused(rest)
    except Exception as error:
        kept = filled - filled % _core.PAGE_SIZE
        part = allocation.slice(0, kept) if kept else None
        start = allocation.range.start
        raise FillError(
            f"filled {filled} of {allocation.nbytes} bytes: {error}",
            _core.FileRange(start, start + kept),
            part,
        ) from error
    else:
        return allocation
    finally:
        reservation.end()
        _release_if_unused(view)
        if filled < allocation.nbytes:
            allocation.release()


def fill_range(allocation: Allocation, reader: Reader) -> _core.FileRange:
    """As :func:`fill`, for the range layer: the caller owns the references afterwards."""
    try:
        return give_away(fill(allocation, reader))
    except FillError as error:
        if error.allocation is not None:
            give_away(error.allocation)
            error.allocation = None
        raise


def give_away(allocation: Allocation) -> _core.FileRange:
    """Hand an allocation's reference to the caller, who balances it from here on."""
    try:
        return allocation._disown()
    except BufferError:
        # Something the reader kept needs a reference of its own.
        allocation.file.inc_ref(allocation.range)
        allocation.release()
        return allocation.range
