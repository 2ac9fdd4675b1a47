"""How arrays lie in a SharedList: the elements, aligned, and behind them what they are.

``write`` appends to anything that has ``write`` and ``align``; ``dtypes`` numbers the dtypes that
occur. ``read`` makes a view: nothing is unpickled, nothing is copied.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from pgalloc.sharing.arrays.shared_array import SharedArray

_TAIL = struct.Struct("<IBB")  # the number of the dtype, dimensions, whether in Fortran's order
_LARGE = 1024
_CACHE_LINE = 64


def can_write(array: Any) -> bool:
    """Whether it has nothing but elements that can lie in pages: subclasses have more."""
    return type(array) in (np.ndarray, SharedArray) and not array.dtype.hasobject


def write(array: np.ndarray[Any, Any], stream: Any, dtypes: dict[Any, int]) -> None:
    """Append an array. Only one that is contiguous in no order is copied for that."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    elements = np.ascontiguousarray(array.T if fortran else array)
    stream.align(_CACHE_LINE if array.nbytes >= _LARGE else array.dtype.alignment)
    if elements.nbytes:
        stream.write(elements.reshape(-1).view(np.uint8))
    number = dtypes.setdefault(array.dtype, len(dtypes))
    stream.write(struct.pack(f"<{array.ndim}Q", *array.shape))
    stream.write(_TAIL.pack(number, array.ndim, fortran))


def read(flat: memoryview, end: int, dtypes: list[Any]) -> np.ndarray[Any, Any]:
    """The array that ends there."""
    end -= _TAIL.size
    number, dimensions, fortran = _TAIL.unpack_from(flat, end)
    end -= 8 * dimensions
    shape = struct.unpack_from(f"<{dimensions}Q", flat, end)
    dtype = dtypes[number]
    start = end - math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, flat, start, order="F" if fortran else "C")
