"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from pgalloc import OptionError, RangeError
from pgalloc.sizes import SIZE_MAX, parse_headroom, parse_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512b", 512),
        ("1K", KIB),
        ("1kb", KIB),
        ("1Ki", KIB),
        ("32M", 32 * MIB),
        ("32 MiB", 32 * MIB),
        (" 8G ", 8 * GIB),
        ("8GB", 8 * GIB),
        ("1.5g", 3 * GIB // 2),
        ("0.3K", 307),
        ("2TB", 2048 * GIB),
        ("9007199254740993", 9007199254740993),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        (str(SIZE_MAX), SIZE_MAX),
        (4096, 4096),
        (SIZE_MAX, SIZE_MAX),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    assert parse_headroom(text) == (0.0, size)


NO_SIZES = (
    *("", " ", "G", "-1", "+1", "1e9", "8 G B", "8X", "0x10", "1,5G", "1_000", "8G8", "10%", "%"),
    *("12 parsecs", "\u0661", "inf", "nan", "1.", ".5", "1.0.0", "\u0664\u0662", "8\ua732", "8G\0"),
    *("9" * 20, "9" * 10**6),
)


@pytest.mark.parametrize("text", NO_SIZES)
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="must be bytes") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", ["8E", "9" * 19, "9" * 19 + "E", -1, 2**63, 2**1100])
def test_sizes_out_of_range(size: str | int) -> None:
    with pytest.raises(RangeError, match="maxsize must be from 0 to"):
        parse_size(size, "maxsize")


@pytest.mark.parametrize("size", [None, True, 1.0, b"8G", [8], object()])
def test_other_types(size: Any) -> None:
    kind = type(size).__name__
    with pytest.raises(TypeError, match=f"maxsize must be bytes, or text such as .*, not {kind}$"):
        parse_size(size, "maxsize")
    if not isinstance(size, float):
        with pytest.raises(TypeError, match=f'"10%" or 0.1 of the limit, .*"32M", not {kind}$'):
            parse_headroom(size)


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("10%", 0.1),
        ("0%", 0.0),
        ("12.5%", 0.125),
        (" 25 % ", 0.25),
        ("50%", 0.5),
        ("0.1", 0.1),
        (" 0.25 ", 0.25),
        (0.1, 0.1),
        (0.0, 0.0),
    ],
)
def test_headroom_as_a_share(text: str | float, fraction: float) -> None:
    assert parse_headroom(text) == (pytest.approx(fraction), 0)


@pytest.mark.parametrize(
    "share",
    ["50.1%", "100%", "1000%", "0.6", "1.0", "1.5", 0.51, 1.5, -0.1, float("nan"), float("inf")],
)
def test_headroom_that_is_more_than_half_or_less_than_nothing(share: str | float) -> None:
    with pytest.raises(RangeError, match=r"at most 0\.5 \(50%\) of the limit"):
        parse_headroom(share)


@pytest.mark.parametrize("text", ["-1%", "%", "ten", "10%%", "10% 5M", ".1", "1e-1", "-0.1", "1,5"])
def test_headroom_that_makes_no_sense(text: str) -> None:
    with pytest.raises(OptionError, match=r'"10%" or 0\.1 of the limit, or bytes'):
        parse_headroom(text)
