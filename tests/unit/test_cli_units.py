"""Amounts and names, as the command line reads and prints them."""

from __future__ import annotations

import os

import pytest

from pgalloc.cli.units import (
    format_bytes,
    format_count,
    format_offset,
    format_path,
    format_seconds,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),
        (3 * 1024**3, "3 GiB"),
        (2**63, "8 EiB"),
        (2**80, "1048576 EiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("offset", "text"), [(0, "0 B"), (5 << 28, "1280 MiB"), (2 << 30, "2 GiB"), (1025, "1025 B")]
)
def test_format_offset(offset: int, text: str) -> None:
    assert format_offset(offset) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 us"),
        (0.000312, "312 us"),
        (0.00451, "4.51 ms"),
        (12.34, "12.3 s"),
        (75, "75.0 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_format_count() -> None:
    assert format_count(1, "file") == "1 file"
    assert format_count(1234, "file") == "1,234 files"


def test_format_path_escapes_what_a_terminal_must_not_see() -> None:
    assert format_path("/a/b c/ä.txt") == "/a/b c/ä.txt"
    assert format_path(os.fsdecode(b"/caf\xe9")) == "/caf\\xe9"
    assert format_path("/new\nline\x1b[31m") == "/new\\nline\\x1b[31m"
