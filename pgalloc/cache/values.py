"""What a value may be: bytes, not too large, and not for ever."""

from __future__ import annotations

import datetime
import numbers
import re
from typing import Any, SupportsFloat, TypeAlias

from pgalloc.errors import OptionError

Expire: TypeAlias = SupportsFloat | datetime.timedelta
"""Seconds as any real number, or a timedelta."""


class TooLargeError(ValueError):
    """A value that alone exceeds ``maxsize``."""


_FIELD_NAME = re.compile(":[^:]*:")


def buffer_of(data: Any) -> memoryview:
    """The bytes of a value. Raises TypeError if it has none, or if they are references."""
    try:
        view = memoryview(data)
    except TypeError as error:
        hint = ": text.encode() makes bytes of it" if isinstance(data, str) else ""
        raise TypeError(
            f"a value is bytes or another bytes-like object, not {type(data).__name__}{hint}"
        ) from error
    if "O" in _FIELD_NAME.sub("", view.format):
        view.release()
        raise TypeError(f"a {type(data).__name__} of Python objects has no bytes that can be kept")
    return view


def lifetime(expire: Expire | None) -> float | None:
    """For how many seconds a value is there; None for ever."""
    if expire is None:
        return None
    seconds = _seconds(expire)
    if not seconds > 0:
        raise OptionError("expire must be more than 0 seconds")
    return seconds


def _seconds(expire: Expire) -> float:
    if isinstance(expire, datetime.timedelta):
        return expire.total_seconds()
    # Decimal is a Number, but for Python no Real.
    real = isinstance(expire, numbers.Real) or not isinstance(expire, numbers.Complex)
    try:
        if isinstance(expire, bool) or not (isinstance(expire, numbers.Number) and real):
            raise TypeError
        return float(expire)
    except OverflowError:
        return float("inf" if expire > 0 else "-inf")  # type: ignore[operator]
    except TypeError:  # numpy's timedelta64, too, which it says is an integer
        raise TypeError(
            f"expire must be seconds or a timedelta, not {type(expire).__name__}"
        ) from None
    except ValueError:  # a Decimal that is a signalling NaN
        return float("nan")
