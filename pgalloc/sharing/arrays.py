"""numpy arrays over shared pages. The one module that needs numpy: imported when it is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.arguments import checked_int
from pgalloc.errors import OptionError
from pgalloc.sharing import transport

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile
    from pgalloc.sharing.peer import PeerFile


class SharedArray(np.ndarray):
    """An array whose elements lie in pages: it travels to other processes without a copy.

    A view of it travels like it. What is computed from it lies in ordinary memory and travels by
    value, as any array does. Plain pickling of shared pages raises TypeError: ``numpy.array(a)`` is
    a copy that can be pickled.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        if _pages_of(self) is None:
            return np.asarray(self).__reduce_ex__(protocol)
        raise TypeError(
            "a SharedArray can only be pickled on its way to another process, by multiprocessing "
            "or concurrent.futures; pickle a copy, numpy.array(a), instead"
        )

    def _reduce_by_value(self) -> Any:
        """For pgalloc.share(), which has pages of its own for the contents."""
        return np.asarray(self).__reduce_ex__(5)

    def __copy__(self) -> Any:
        return np.array(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return np.array(self)


def new_array(
    file: MemoryFile | PeerFile, shape: Any, dtype: Any, options: dict[str, Any]
) -> SharedArray:
    """An array of zeros in new pages of a file."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise OptionError("Python objects cannot lie in shared pages: see pgalloc.share()")
    order = options.pop("order", "C")
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    dimensions = tuple(checked_int(extent, "shape", high=2**62) for extent in shape)
    nbytes = math.prod(dimensions) * kind.itemsize
    pages = file.allocate(_whole_pages(checked_int(nbytes, "size", high=2**62)), **options)
    return SharedArray(dimensions, kind, buffer=pages.view(), order=order)


def _whole_pages(nbytes: int) -> int:
    return max(-(-nbytes // _core.PAGE_SIZE), 1) * _core.PAGE_SIZE


def _pages_of(array: Any) -> Allocation | None:
    """The Allocation that an array lies in; None if in none."""
    while isinstance(array, (np.ndarray, memoryview)):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array if isinstance(array, Allocation) else None


def _bounds(array: SharedArray) -> tuple[int, int]:
    """Where the lowest and the end of the highest element lie, from the first one on."""
    low, high = 0, array.itemsize if array.size else 0
    for extent, stride in zip(array.shape, array.strides, strict=True):
        reach = (extent - 1) * stride if array.size else 0
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high


def _reduce(array: SharedArray) -> Any:
    """What is sent: a token for the pages that the elements lie in, and where."""
    pages = _pages_of(array)
    if pages is None:
        return np.asarray(array).__reduce_ex__(5)
    offset = array.__array_interface__["data"][0] - pages.address
    low, high = (offset + border for border in _bounds(array))
    start = low // _core.PAGE_SIZE * _core.PAGE_SIZE
    stop = start + _whole_pages(high - start)
    token = transport.offer(pages.slice(start, stop))
    layout = (array.shape, array.dtype, offset - start, array.strides, array.flags.writeable)
    return _receive, (token.address.name, token.address.secret, token.nonce, *layout)


def _receive(
    name: bytes,
    secret: bytes,
    nonce: bytes,
    shape: tuple[int, ...],
    dtype: Any,
    offset: int,
    strides: tuple[int, ...],
    writeable: bool,
) -> SharedArray:
    pages = transport.receive(name, secret, nonce)
    array = SharedArray(shape, dtype, buffer=pages.view(), offset=offset, strides=strides)
    if not writeable:
        array.flags.writeable = False
    return array


transport.register(SharedArray, _reduce)
