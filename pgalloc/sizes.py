"""Sizes as people write them: "8G", "512M", "10%". One parser for the whole package.

Units are binary, whatever their spelling: K, KB, Ki and KiB are all 1024 bytes, as in systemd and
``docker run -m``. Upper and lower case mean the same. Pure functions, safe from any thread.
"""

from __future__ import annotations

import re
from typing import SupportsIndex, TypeAlias

from pgalloc.arguments import checked_int
from pgalloc.errors import OptionError, RangeError

SIZE_MAX = 2**63 - 1

Headroom: TypeAlias = str | float | SupportsIndex
"""What :func:`parse_headroom` takes."""

_UNITS = " kmgtpe"
# Bounded repeats: a text of a megabyte is refused at its 20th digit.
_NUMBER = r"(\d{1,19})(?:\.(\d{1,9}))?"
_SIZE = re.compile(rf"\s{{0,9}}{_NUMBER}\s?(?:([kmgtpe])(?:i?b|i)?|b)?\s{{0,9}}", re.I | re.A)
_DECIMAL = re.compile(r"\s{0,9}\d{1,19}\.\d{1,9}\s{0,9}", re.A)
_PERCENT = re.compile(rf"\s{{0,9}}{_NUMBER}\s?%\s{{0,9}}", re.A)


def parse_size(size: str | SupportsIndex, name: str = "size") -> int:
    """Bytes, from an int or from text such as "8G", "1.5 GiB", "4096"; rounded down to a byte.

    Raises TypeError for other types, OptionError for text that is no size, RangeError for what is
    negative or above 2^63-1. ``name`` is what the message calls it.
    """
    accepted = f'{name} must be bytes, or text such as "512M" or "8G", not '
    if not isinstance(size, str):
        _check_number(size, accepted)
        return checked_int(size, name, high=SIZE_MAX)
    match = _SIZE.fullmatch(size)
    if match is None:
        raise OptionError(f"{accepted}{size[:40]!r}")
    whole, fraction, unit = match[1], match[2] or "", (match[3] or " ").lower()
    value = (int(whole + fraction) << 10 * _UNITS.index(unit)) // int("1" + "0" * len(fraction))
    if value > SIZE_MAX:
        raise RangeError(f"{name} must be from 0 to {SIZE_MAX}")
    return value


def parse_headroom(headroom: Headroom) -> tuple[float, int]:
    """How much to keep free below a limit: (fraction of the limit, bytes), one of them 0.

    "10%", 0.1 and "0.1" are (0.1, 0); "32M" and 33554432 are (0.0, 33554432). A fraction is at
    most a half, which is also what is kept of a smaller limit if more bytes are asked for.

    Raises TypeError, OptionError or RangeError as :func:`parse_size`.
    """
    if isinstance(headroom, float):
        return _fraction(headroom), 0
    if isinstance(headroom, str):
        if match := _PERCENT.fullmatch(headroom):
            return _fraction(float(f"{match[1]}.{match[2] or 0}") / 100), 0
        if _DECIMAL.fullmatch(headroom):
            return _fraction(float(headroom)), 0
    accepted = (
        'headroom must be "10%" or 0.1 of the limit, or bytes, such as 33554432 or "32M", not '
    )
    if not isinstance(headroom, str):
        _check_number(headroom, accepted)
    try:
        return 0.0, parse_size(headroom, "headroom")
    except OptionError:
        raise OptionError(f"{accepted}{str(headroom)[:40]!r}") from None


def _check_number(value: object, accepted: str) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{accepted}{type(value).__name__}")


def _fraction(fraction: float) -> float:
    if not 0 <= fraction <= 0.5:  # nor is NaN
        raise RangeError(f"headroom must be at most 0.5 (50%) of the limit, not {fraction}")
    return fraction
