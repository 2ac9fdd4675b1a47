"""SharedArray: an array in pages that is an array everywhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pgalloc.allocation import Allocation


def pages_of(array: Any) -> Allocation | None:
    """The Allocation that an array lies in; None if in none."""
    while True:
        if isinstance(array, memoryview):
            array = array.obj
        elif isinstance(array, np.ndarray) or _is_in_between(array):
            array = array.base
        else:
            return array if isinstance(array, Allocation) else None


def elements_of(buffer: Any) -> np.ndarray[Any, Any]:
    """What an array on pages has to be made on, to keep them where they are.

    numpy.ndarray(buffer=) lets go of the view it is given, and keeps only the object behind it.
    """
    return np.frombuffer(buffer, np.uint8)


def _is_in_between(owner: Any) -> bool:
    """numpy's as_strided() puts an object of its own between a view and what it is a view of."""
    kind = type(owner)
    return kind.__name__ == "DummyArray" and kind.__module__.startswith("numpy.")


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
        return pages_of(self)

    @property
    def base(self) -> Any:
        """The object that the memory belongs to: the Allocation, if it is in pages."""
        owner = super().base
        pages = pages_of(owner)
        return owner if pages is None else pages

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
        result = super().__getitem__(index)
        return _numpys_own(result) if type(result) is SharedArray else result

    @property
    def imag(self) -> Any:
        """As numpy has it: of real numbers it is zeros, in ordinary memory."""
        return _numpys_own(super().imag)

    @imag.setter
    def imag(self, value: Any) -> None:
        np.asarray(self).imag = value

    # --- copies and pickles -----------------------------------------------------------------------

    def __copy__(self) -> Any:
        return np.array(self, subok=type(self) is not SharedArray)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__copy__()  # no object can lie in pages

    def __reduce__(self) -> Any:
        return (
            super().__reduce__() if type(self) is not SharedArray else np.asarray(self).__reduce__()
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is not SharedArray:  # a class of its user's stays what it is
            return super().__reduce_ex__(protocol)
        return np.asarray(self).__reduce_ex__(protocol)


def _numpys_own(result: Any) -> Any:
    """A SharedArray that does not lie in pages becomes numpy's; so do those in a tuple or list."""
    kind = type(result)
    if kind is SharedArray:
        return result if pages_of(result) is not None else result.view(np.ndarray)
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
_METHODS = """
    argmax argmin argpartition argsort astype byteswap choose clip compress copy cumprod cumsum dot
    flatten ravel repeat reshape round searchsorted take trace
"""
for _name in _METHODS.split():
    setattr(SharedArray, _name, _returning_numpys_own(_name))
