"""What a value may be: not too large, and not for ever."""

from __future__ import annotations

import time

from pgalloc.errors import OptionError


class TooLargeError(ValueError):
    """A value that alone exceeds ``maxsize``."""


def expiry(expire: float | None) -> float | None:
    """When that is; None for never."""
    if expire is None:
        return None
    if isinstance(expire, bool) or not isinstance(expire, (int, float)):
        raise TypeError(f"expire must be seconds, not {type(expire).__name__}")
    if not expire > 0:
        raise OptionError("expire must be more than 0 seconds")
    # Nobody waits longer than for 3000 years; and clocks are added to it.
    return time.monotonic() + expire if expire < 1e11 else None
