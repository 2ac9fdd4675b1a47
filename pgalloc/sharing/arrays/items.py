"""How arrays lie in a SharedList: the elements, aligned, and behind them what they are.

``write`` appends to anything that has ``write`` and ``align``; ``dtypes`` numbers the dtypes that
occur. A Reader makes views: nothing but the list of dtypes is unpickled, nothing is copied.
"""

from __future__ import annotations

import math
import pickle
import struct
from typing import Any

import numpy as np

from pgalloc.sharing.arrays.shared_array import SharedArray, elements_of

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


class Reader:
    """Reads what was written to ``flat``; ``pickled`` is the list of dtypes."""

    def __init__(self, flat: memoryview, pickled: memoryview) -> None:
        self._flat = flat
        self._elements = elements_of(flat)
        self._dtypes: list[Any] = pickle.loads(pickled)

    def read(self, end: int) -> np.ndarray[Any, Any]:
        """The array that ends there."""
        end -= _TAIL.size
        number, dimensions, fortran = _TAIL.unpack_from(self._flat, end)
        end -= 8 * dimensions
        shape = struct.unpack_from(f"<{dimensions}Q", self._flat, end)
        dtype = self._dtypes[number]
        start = end - math.prod(shape) * dtype.itemsize
        order: Any = "F" if fortran else "C"
        return np.ndarray(shape, dtype, self._elements, start, order=order)
