"""Sizes as people write them: "8G", "512M", "10%". One parser for the whole package.

Units are binary, whatever their spelling: K, KB, Ki and KiB are all 1024 bytes, as in systemd and
``docker run -m``. Upper and lower case mean the same. Pure functions, safe from any thread.
"""

from __future__ import annotations

import re
from typing import SupportsIndex

from pgalloc.arguments import checked_int
from pgalloc.errors import OptionError, RangeError

SIZE_MAX = 2**63 - 1

_UNITS = " kmgtpe"
# Bounded repeats: a text of a megabyte is refused at its 20th digit.
_NUMBER = r"(\d{1,19})(?:\.(\d{1,9}))?"
_SIZE = re.compile(rf"\s{{0,9}}{_NUMBER}\s?(?:([kmgtpe])(?:i?b|i)?|b)?\s{{0,9}}", re.I | re.A)
_PERCENT = re.compile(rf"\s{{0,9}}{_NUMBER}\s?%\s{{0,9}}", re.A)


def parse_size(size: str | SupportsIndex, name: str = "size") -> int:
    """Bytes, from an int or from text such as "8G", "1.5 GiB", "4096"; rounded down to a byte.

    Raises TypeError for other types, OptionError for text that is no size, RangeError for what is
    negative or above 2^63-1. ``name`` is what the message calls it.
    """
    if not isinstance(size, str):
        return checked_int(size, name, high=SIZE_MAX)
    match = _SIZE.fullmatch(size)
    if match is None:
        raise OptionError(
            f'{name} must be bytes, or text such as "512M" or "8G", not {size[:40]!r}'
        )
    whole, fraction, unit = match[1], match[2] or "", (match[3] or " ").lower()
    value = (int(whole + fraction) << 10 * _UNITS.index(unit)) // int("1" + "0" * len(fraction))
    if value > SIZE_MAX:
        raise RangeError(f"{name} must be from 0 to {SIZE_MAX}")
    return value


def parse_headroom(headroom: str | SupportsIndex) -> tuple[float, int]:
    """How much to keep free below a limit: (fraction of the limit, bytes), one of them 0.

    "10%" is (0.1, 0); "32M" and 33554432 are (0.0, 33554432). A fraction is below 1.

    Raises TypeError, OptionError or RangeError as :func:`parse_size`.
    """
    match = _PERCENT.fullmatch(headroom) if isinstance(headroom, str) else None
    if match is None:
        try:
            return 0.0, parse_size(headroom, "headroom")
        except OptionError:
            raise OptionError(
                f'headroom must be "10%", bytes, or text such as "32M", not {str(headroom)[:40]!r}'
            ) from None
    percent = float(f"{match[1]}.{match[2] or 0}")
    if percent >= 100:
        raise RangeError("headroom must be less than 100%")
    return percent / 100, 0
