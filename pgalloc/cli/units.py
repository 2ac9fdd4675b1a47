"""Amounts as people read them: bytes, seconds, counts, and names of files."""

from __future__ import annotations

import os

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_bytes(count: int) -> str:
    """``1536`` is "1.5 KiB"; whole numbers stay whole."""
    value, unit = float(count), 0
    while round(abs(value), 1) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    digits = f"{value:.1f}".removesuffix(".0")
    return f"{digits} {_UNITS[unit]}"


def format_offset(offset: int) -> str:
    """Exact, in the largest unit that divides it: "1280 MiB"."""
    unit = 0
    while offset and offset % 1024 == 0 and unit < len(_UNITS) - 1:
        offset //= 1024
        unit += 1
    return f"{offset} {_UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """Three significant digits: "312 us", "4.51 ms", "12.3 s"."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or unit == "us":
            value = seconds * factor
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def format_count(count: int, noun: str) -> str:
    """ "1 file", "1,234 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_path(path: str) -> str:
    """A file name that is safe to print: what is not printable or not UTF-8 comes as an escape."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
