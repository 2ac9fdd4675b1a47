"""How arrays travel: as a token for the pages that their elements lie in, and where they lie there.

A view of an array is sent with the pages of the view, not with all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgalloc import _core
from pgalloc.allocation import Allocation, whole_pages
from pgalloc.errors import ClosedError, Error, OwnerGoneError
from pgalloc.raised import is_ours
from pgalloc.sharing import transport
from pgalloc.sharing.arrays.shared_array import SharedArray, elements_of, pages_of
from pgalloc.sharing.unattached import attach


def _bounds(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Where the lowest and the end of the highest element lie, from the first one on."""
    if array.size == 0:
        return 0, 0
    low, high = 0, array.itemsize
    for extent, stride in zip(array.shape, array.strides, strict=True):
        reach = (extent - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high


def _handle(pages: Allocation) -> Allocation:
    """A handle that can be used: an array holds its pages whatever became of the handle it had."""
    if not pages.released:
        return pages
    if not pages._in_use:  # an array that was made without a view of them
        raise ClosedError("the Allocation has been released")
    pages.file.inc_ref(pages.range)
    try:
        return Allocation(pages.file, pages.range)
    except Exception as error:
        if is_ours(error):  # not what interrupts: then it has been given back already
            pages.file.dec_ref(pages.range)
        raise


def _send(array: np.ndarray[Any, Any], pages: Allocation) -> Any:
    """What is sent: a token for the pages that the elements lie in, and where."""
    handle = _handle(pages)
    offset = array.__array_interface__["data"][0] - handle.address
    low, high = (offset + border for border in _bounds(array))
    start = low // _core.PAGE_SIZE * _core.PAGE_SIZE
    if array.size == 0:  # it may point to the end, and any page will do
        start = offset = 0
        high = 0
    part = handle.slice(start, start + whole_pages(high - start))
    layout = (array.shape, array.dtype, offset - start, array.strides, array.flags.writeable)
    return attach, (_receive, type(array) is SharedArray, transport.send(part), *layout)


def _receive(
    shared: bool,
    token: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: Any,
    offset: int,
    strides: tuple[int, ...],
    writeable: bool,
) -> np.ndarray[Any, Any]:
    pages = transport.receive(*token)
    kind = SharedArray if shared else np.ndarray
    array: np.ndarray[Any, Any] = kind(
        shape, dtype, buffer=elements_of(pages), offset=offset, strides=strides
    )
    if not writeable:
        array.flags.writeable = False
    return array


def _reduce(array: SharedArray) -> Any:
    """For the picklers that send pages."""
    pages = pages_of(array)
    if pages is not None:
        try:
            return _send(array, pages)
        except (ClosedError, OwnerGoneError) as error:
            if not is_ours(error):
                raise
            # No process counts them any more: it is memory as any other.
    # By a protocol that all picklers have: a reducer is not told which one is used.
    return np.asarray(array).__reduce_ex__(4)


def reduce_numpys_own(array: np.ndarray[Any, Any]) -> Any:
    """The same for numpy's own type; NotImplemented leaves it to the pickler, by value.

    Also if its pages cannot be sent: an array that could be pickled without pgalloc still can.
    """
    pages = pages_of(array)
    if pages is None or array.dtype.hasobject:
        return NotImplemented
    try:
        return _send(array, pages)
    except (Error, OSError) as error:
        if not is_ours(error):
            raise
        return NotImplemented


transport.register(SharedArray, _reduce)
