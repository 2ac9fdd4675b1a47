"""Checks of arguments on their way to the core: a bool is no number, nothing is converted."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat, SupportsIndex

from pgalloc.errors import OptionError, RangeError

_TIMEOUT_MAX_S = 1e9
"""About 30 years; the core's clock goes much further."""


def checked_int(value: SupportsIndex, name: str, *, low: int = 0, high: int) -> int:
    """An integer from ``low`` to ``high``; else TypeError or RangeError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = operator.index(value)
    if not low <= number <= high:
        raise RangeError(f"{name} must be from {low} to {high}")
    return number


def checked_flag(value: object, name: str) -> bool:
    """A bool, and nothing that is only true or false in spirit."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def checked_seconds(value: SupportsFloat, name: str) -> float:
    """A number of seconds; infinity is one."""
    if isinstance(value, (bool, str, bytes, bytearray)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        raise RangeError(f"{name} does not fit a float") from None
    if math.isnan(seconds):
        raise OptionError(f"{name} must not be NaN")
    return seconds


def checked_timeout(value: SupportsFloat | None) -> float | None:
    """Seconds, or None for no limit; beyond 30 years it is 30 years."""
    return None if value is None else min(checked_seconds(value, "timeout"), _TIMEOUT_MAX_S)


def checked_memcg_id(value: SupportsIndex) -> int:
    """A memory cgroup id: 32 bits."""
    return checked_int(value, "memcg_id", high=2**32 - 1)


def checked_bytes(value: SupportsIndex, name: str = "bytes") -> int:
    """An amount of bytes: 64 bits."""
    return checked_int(value, name, high=2**64 - 1)
