"""numpy arrays in pages, and how they travel. It needs numpy: it is imported when it is used.

An array in pages is sent as a token for the pages that its elements lie in, and where they lie.
What is left of it everywhere else is an array like any other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.arguments import checked_int
from pgalloc.errors import ClosedError, Error, OptionError, OwnerGoneError
from pgalloc.sharing import transport
from pgalloc.sharing.unattached import attach

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile
    from pgalloc.sharing.peer import PeerFile


class SharedArray(np.ndarray):
    """An array whose elements lie in pages: it travels to other processes without a copy.

    multiprocessing, concurrent.futures, joblib (loky), multiprocess and torch.multiprocessing send
    it, and each view of it, as its pages. All other pickling is by value, as an array's. What is
    computed from it, copies and scalars are of numpy's own types, in ordinary memory.
    """

    @property
    def allocation(self) -> Allocation | None:
        """The pages that the elements lie in, all of them; None if in ordinary memory.

        Releasing it takes nothing from the array.
        """
        return _pages_of(self)

    # --- what is computed is numpy's own, as with numpy.memmap ------------------------------------

    def __array_wrap__(self, array: Any, context: Any = None, *return_scalar: bool) -> Any:
        if array is self:  # out=
            return array
        if type(self) is not SharedArray:
            return super().__array_wrap__(array, context, *return_scalar)
        if any(return_scalar) or (not return_scalar and array.shape == ()):  # numpy 1 does not say
            return array[()]
        return _numpys_own(array)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _numpys_own(super().__array_function__(func, types, args, kwargs))

    def __getitem__(self, index: Any) -> Any:
        return _numpys_own(super().__getitem__(index))

    # --- copies and pickles -----------------------------------------------------------------------

    def __copy__(self) -> Any:
        return np.array(self, subok=type(self) is not SharedArray)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__copy__()  # no object can lie in pages

    def __reduce__(self) -> Any:
        return super().__reduce__() if type(self) is not SharedArray else np.asarray(self).__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is not SharedArray:  # a class of its user's stays what it is
            return super().__reduce_ex__(protocol)
        return np.asarray(self).__reduce_ex__(protocol)


def _numpys_own(result: Any) -> Any:
    """A SharedArray that does not lie in pages becomes numpy's; so do those in a tuple or list."""
    kind = type(result)
    if kind is SharedArray:
        return result if _pages_of(result) is not None else result.view(np.ndarray)
    if kind in (tuple, list):
        return kind(_numpys_own(item) for item in result)
    if isinstance(result, tuple) and hasattr(result, "_make"):  # a named one
        return result._make(_numpys_own(item) for item in result)
    return result


def _returning_numpys_own(name: str) -> Callable[..., Any]:
    method = getattr(np.ndarray, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return _numpys_own(method(self, *args, **options))

    return call


# The methods that may return a copy, and do not ask __array_wrap__.
for _name in (
    "argmax argmin argpartition argsort astype byteswap choose clip compress copy cumprod cumsum "
    "dot flatten ravel repeat reshape round searchsorted take trace"
).split():
    setattr(SharedArray, _name, _returning_numpys_own(_name))


# --- new arrays ----------------------------------------------------------------------------------


def new_array(
    file: MemoryFile | PeerFile, shape: Any, dtype: Any, options: dict[str, Any]
) -> SharedArray:
    """An array of zeros in new pages of a file."""
    options = dict(options)
    prototype = _prototype(dtype)
    order = options.pop("order", "C")
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    dimensions = tuple(checked_int(extent, "shape", high=2**62) for extent in shape)
    dimensions += prototype.shape
    nbytes = math.prod(dimensions) * prototype.itemsize
    pages = file.allocate(_whole_pages(checked_int(nbytes, "size", high=2**62)), **options)
    return SharedArray(dimensions, prototype.dtype, buffer=pages.view(), order=order)


def _prototype(dtype: Any) -> np.ndarray[Any, Any]:
    """One element as numpy makes it: "S" is of one byte, "(2,2)f8" is an array itself."""
    if np.dtype(dtype).hasobject:
        raise OptionError("Python objects cannot lie in shared pages: see pgalloc.share()")
    return np.zeros((), dtype)


def copy_of(
    file: MemoryFile | PeerFile, data: Any, dtype: Any, options: dict[str, Any]
) -> SharedArray:
    """An array in new pages of a file, with the contents of anything numpy.array() takes."""
    source = data
    wanted = None if dtype is None else np.dtype(dtype)
    if not isinstance(data, np.ndarray) or (wanted is not None and not wanted.itemsize):
        source = np.asarray(data, wanted)  # numpy says how long the longest "S" is
        wanted = None
    kind = source.dtype if wanted is None else wanted
    if kind.subdtype is not None:
        raise OptionError("the dtype of a copy cannot be of arrays")
    fortran = source.flags.f_contiguous and not source.flags.c_contiguous
    options = {"order": "F" if fortran else "C", **options}
    reservation = _core.CommitReservation(_whole_pages(source.size * max(kind.itemsize, 1)))
    try:
        array = new_array(file, source.shape, kind, options)
        np.copyto(array, source, casting="unsafe")
    finally:
        reservation.end()
    return array


def _whole_pages(nbytes: int) -> int:
    return max(-(-nbytes // _core.PAGE_SIZE), 1) * _core.PAGE_SIZE


# --- where an array lies -------------------------------------------------------------------------


def _pages_of(array: Any) -> Allocation | None:
    """The Allocation that an array lies in; None if in none."""
    while True:
        if isinstance(array, memoryview):
            array = array.obj
        elif isinstance(array, np.ndarray) or type(array).__name__ == "DummyArray":
            array = array.base  # a DummyArray stands between numpy's as_strided() and its argument
        else:
            return array if isinstance(array, Allocation) else None


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
    pages.file.inc_ref(pages.range)
    try:
        return Allocation(pages.file, pages.range)
    except BaseException:
        pages.file.dec_ref(pages.range)
        raise


# --- on the way ----------------------------------------------------------------------------------


def _send(array: np.ndarray[Any, Any], pages: Allocation) -> Any:
    """What is sent: a token for the pages that the elements lie in, and where."""
    handle = _handle(pages)
    offset = array.__array_interface__["data"][0] - handle.address
    low, high = (offset + border for border in _bounds(array))
    start = low // _core.PAGE_SIZE * _core.PAGE_SIZE
    if array.size == 0:  # it may point to the end, and any page will do
        start = offset = 0
        high = 0
    part = handle.slice(start, start + _whole_pages(high - start))
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
        shape, dtype, buffer=pages.view(), offset=offset, strides=strides
    )
    if not writeable:
        array.flags.writeable = False
    return array


def _reduce(array: SharedArray) -> Any:
    """For the picklers that send pages."""
    pages = _pages_of(array)
    if pages is not None:
        try:
            return _send(array, pages)
        except (ClosedError, OwnerGoneError):  # no process counts them: it is memory as any other
            pass
    # By a protocol that all picklers have: a reducer is not told which one is used.
    return np.asarray(array).__reduce_ex__(4)


def reduce_numpys_own(array: np.ndarray[Any, Any]) -> Any:
    """The same for numpy's own type; NotImplemented if it is to be pickled as ever.

    That is also so if its pages cannot be sent: an array that could always be pickled still can.
    """
    pages = _pages_of(array)
    if pages is None or array.dtype.hasobject:
        return NotImplemented
    try:
        return _send(array, pages)
    except (Error, OSError, TypeError):
        return NotImplemented


transport.register(SharedArray, _reduce)
