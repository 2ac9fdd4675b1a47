"""The model of the image format: it takes back what it makes, and refuses what is changed."""

from __future__ import annotations

import random

import image_build
import image_parse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_model import (
    RAW,
    ZSTD,
    Extent,
    Hook,
    Image,
    Usage,
    VersionError,
    build,
    crc32c,
    extents_of,
    fields,
    forge,
    parse,
    unnamed_bytes,
)

PAGE = 4096
MIB = 1 << 20


def page_of(byte: int) -> bytes:
    return bytes([byte]) * PAGE


def sample(encoding: int = RAW) -> Image:
    """One of everything: two extents (grid), a hole, a hook without payload, text of some width."""
    pages = {0: page_of(1), 2 * PAGE: page_of(2), 4 * MIB: page_of(3)}
    usage = [
        Usage(0, 4 * PAGE, references=2, memcg_id=7),
        Usage(4 * MIB - PAGE, 4 * MIB + PAGE, kind=2),
        Usage(4 * MIB + PAGE, 4 * MIB + 2 * PAGE, kind=4, committed=0),
    ]
    hooks = [Hook("erste", b"payload"), Hook("\u00e4", b"")]
    extents = extents_of(pages, PAGE, encoding)
    return Image(PAGE, 8 * MIB, usage, "r\u00e9store", hooks, extents, zero_pages_skipped=5)


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Any sound image of up to some dozens of pages, near the grid and elsewhere."""
    page = draw(st.sampled_from([PAGE, 4 * PAGE, 16 * PAGE]))
    numbers = st.integers(0, 3 * (4 * MIB // page))
    borders = sorted(draw(st.lists(numbers, max_size=12, unique=True)))
    usage = [
        Usage(
            start * page,
            end * page,
            references=draw(st.integers(1, 2**32 - 1)),
            memcg_id=draw(st.integers(0, 2**32 - 1)),
            kind=draw(st.integers(0, 4)),
            committed=draw(st.integers(0, 1)),
            huge=draw(st.integers(0, 1)),
        )
        for start, end in zip(borders[::2], borders[1::2], strict=False)
    ]
    used = [n * page for u in usage for n in range(u.start // page, u.end // page)]
    chosen = draw(st.lists(st.sampled_from(used), max_size=20, unique=True)) if used else []
    pages = {offset: bytes([draw(st.integers(0, 255))]) * page for offset in chosen}
    names = draw(st.lists(st.text(min_size=1, max_size=40), max_size=3, unique=True))
    return Image(
        page,
        16 * MIB,
        usage,
        draw(st.text(max_size=20)),
        [Hook(name, draw(st.binary(max_size=5000))) for name in names],
        extents_of(pages, page, draw(st.sampled_from([RAW, ZSTD]))),
        draw(st.integers(0, 16 * MIB // page - len(pages))),
    )


def test_the_checksum_is_the_one_of_the_rfc() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 3 * 4096, 20_000])
def test_the_checksum_of_blocks_is_the_checksum_of_bytes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


@settings(max_examples=60, deadline=None)
@given(images())
def test_what_is_built_is_parsed(image: Image) -> None:
    data = build(image)
    parsed = parse(data, image.page_size)
    assert parsed == image
    assert build(parsed) == data
    assert forge(data) == data


@pytest.mark.parametrize("encoding", [RAW, ZSTD])
def test_an_image_says_what_went_in(encoding: int) -> None:
    image = parse(build(sample(encoding)))
    assert image.pages() == {0: page_of(1), 2 * PAGE: page_of(2), 4 * MIB: page_of(3)}
    assert {extent.encoding for extent in image.extents} == {encoding}
    assert image.header is not None
    assert image.trailer is not None
    assert (image.header.usage_count, image.header.hook_count) == (3, 2)
    assert (image.trailer.stored_pages, image.trailer.zero_pages_skipped) == (3, 5)
    assert [entry.start for entry in image.index] == [0, 4 * MIB]


def test_an_empty_image() -> None:
    data = build(Image(PAGE, 0))
    assert len(data) == 3 * PAGE
    assert parse(data) == Image(PAGE, 0)


def test_fields_and_unnamed_bytes_are_the_whole_image() -> None:
    data = build(sample())
    spans = sorted([*((f.offset, f.width) for f in fields(data)), *unnamed_bytes(data)])
    position = 0
    for offset, width in spans:
        assert offset == position
        position += width
    assert position == len(data)
    assert len({field.name for field in fields(data)}) == len(fields(data))
    assert not any(any(data[at : at + width]) for at, width in unnamed_bytes(data))


def test_no_bit_can_be_flipped() -> None:
    data = build(sample())
    bits = [(f.offset + i, bit) for f in fields(data) for i in range(f.width) for bit in range(8)]
    for at, bit in random.Random(1).sample(bits, 2000):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        with pytest.raises(ValueError):
            parse(bytes(flipped))


def test_no_end_can_be_cut_off_and_nothing_added() -> None:
    data = build(sample())
    for size in [*range(0, len(data), PAGE), *range(70), len(data) - 1]:
        with pytest.raises(ValueError):
            parse(data[:size])
    for more in (b"\0", bytes(PAGE), data):
        with pytest.raises(ValueError):
            parse(data + more)


def test_bytes_without_a_name_must_be_zero_though_the_checksums_fit() -> None:
    data = build(sample())
    for at, width in unnamed_bytes(data):
        for offset in {at, at + width // 2, at + width - 1}:
            forged = forge(data, patches={offset: b"\1"})
            with pytest.raises(ValueError, match=r"zero|padding"):
                parse(forged)


# What forged numbers are legal: they change what the image says, and nothing contradicts them.
# A page map may name other pages, if they are as many.
FREE = {
    "committed", "end", "file_size", "kind", "memcg_id", "page_map", "references", "start",
    "zero_pages_skipped",
}  # fmt: skip


def test_every_field_that_something_else_fixes_is_refused_though_the_checksums_fit() -> None:
    data = build(sample())
    for field in fields(data):
        if not field.is_number or field.name.rpartition(".")[2] in FREE:
            continue
        value = int.from_bytes(data[field.offset : field.end], "little")
        top = (1 << 8 * field.width) - 1
        for hostile in {0, 1, value - 1, value + 1, value ^ 1 << 31, top, top >> 1} - {value}:
            if 0 <= hostile <= top:
                with pytest.raises(ValueError):
                    parse(forge(data, {field.name: hostile}))


@pytest.mark.parametrize(
    ("change", "value", "cause"),
    [
        ("usage[0].references", 0, "references"),
        ("usage[0].kind", 5, "kind"),
        ("usage[0].committed", 2, "committed"),
        ("usage[0].huge", 2, "huge"),
        ("usage[0].huge", 1, "version: huge"),
        ("header.version", 2, "version: huge"),
        ("usage[1].start", 3 * PAGE, "usage: range"),
        ("usage[1].start", 1, "whole pages"),
        ("usage[0].end", PAGE, "not in the usage set"),
        ("header.file_size", 4 * MIB, "usage: range"),
        ("header.file_size", 8 * MIB + 1, "file size"),
        ("header.file_size", 1 << 63, "file size"),
        ("hook[1].name", b"\xff\xff", "UTF-8"),
        ("extent[0].checksum", 1, "extent: checksum"),
        ("trailer.zero_pages_skipped", 2 * 1024 - 2, "zero pages skipped"),
        ("index[0].head_checksum", 1, "differs from head"),
        ("trailer.header_checksum", 1, "header checksum"),
    ],
)
def test_what_is_refused_is_named(change: str, value: int | bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse(forge(build(sample()), {change: value}))


def test_another_version_and_another_page_size_are_told_from_damage() -> None:
    data = build(sample())
    with pytest.raises(VersionError, match="version 3"):
        parse(forge(data, {"header.version": 3}))
    with pytest.raises(VersionError, match="page size"):
        parse(data, page_size=16384)


def test_extents_that_lie_are_built_and_refused() -> None:
    first, second = sample().extents
    for extents, cause in [
        ([second, first], "ascending"),
        ([first, first], "ascending"),
        ([Extent(0, 4, 0b10000, page_of(1))], "behind its end"),
        ([Extent(4 * MIB - PAGE, 2, 0b1, page_of(1))], "4 MiB"),
        ([Extent(0, 1, 0b1, page_of(1) + b"\1")], "stored length"),
        ([Extent(0, 1, 0b1, b"no frame", encoding=ZSTD)], "zstd"),
    ]:
        image = sample()
        image.extents = extents
        with pytest.raises(ValueError, match=cause):
            parse(build(image))


def test_every_byte_is_summed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By building and by parsing: checksums are what the model spends its time on."""
    image = Image(PAGE, 4 * MIB, [Usage(0, 4 * MIB)])
    image.extents = extents_of({i * PAGE: page_of(i) for i in range(256)}, PAGE)
    summed: list[int] = []

    def counting(data: bytes) -> int:
        summed.append(len(data))
        return crc32c(data)

    for module in (image_build, image_parse):
        monkeypatch.setattr(module, "crc32c", counting)
    data = build(image)
    assert MIB <= sum(summed) <= len(data)
    assert parse(data) == image
    assert sum(summed) <= 2 * len(data)
