"""New arrays in pages: of zeros, and copies of other arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pgalloc import _core
from pgalloc.allocation import whole_pages
from pgalloc.arguments import checked_int
from pgalloc.enums import AllocationMode
from pgalloc.errors import OptionError
from pgalloc.sharing.arrays.shared_array import SharedArray, elements_of

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile
    from pgalloc.sharing.peer import PeerFile


def new_array(
    file: MemoryFile | PeerFile, shape: Any, dtype: Any, options: dict[str, Any]
) -> SharedArray:
    """An array of zeros in new pages of a file."""
    options = dict(options)
    if options.get("mode", AllocationMode.ALLOCATE_ONLY) != AllocationMode.ALLOCATE_ONLY:
        options.setdefault("huge", None)
    prototype = _prototype(dtype)
    order = options.pop("order", "C")
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    dimensions = tuple(checked_int(extent, "shape", high=2**62) for extent in shape)
    dimensions += prototype.shape
    nbytes = math.prod(dimensions) * prototype.itemsize
    pages = file.allocate(whole_pages(checked_int(nbytes, "size", high=2**62)), **options)
    return SharedArray(dimensions, prototype.dtype, buffer=elements_of(pages), order=order)


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
    options = {"order": "F" if fortran else "C", "huge": None, **options}
    reservation = _core.CommitReservation(whole_pages(source.size * max(kind.itemsize, 1)))
    try:
        array = new_array(file, source.shape, kind, options)
        np.copyto(array, source, casting="unsafe")
    finally:
        reservation.end()
    return array
