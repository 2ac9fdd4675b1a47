"""What a value may be: not too large, and not for ever."""

from __future__ import annotations

import time

from pgalloc.errors import OptionError


class TooLargeError(ValueError):
    """A value that alone exceeds ``maxsize``."""


def expiry(expire: float | None) -> float | None:
    """When a value expires, by time.monotonic(); None for never."""
    if expire is None:
        return None
    if isinstance(expire, bool) or not isinstance(expire, (int, float)):
        raise TypeError(f"expire must be seconds, not {type(expire).__name__}")
    if not expire > 0:
        raise OptionError("expire must be more than 0 seconds")
    # More than 3000 years is for ever; and the clock is added to it.
    return time.monotonic() + expire if expire < 1e11 else None
