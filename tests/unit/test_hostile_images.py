"""Images that are damaged or forged: refused, or read exactly as the model reads them (row J8).

``image_readers`` holds every way of reading against the model; ``image_causes`` and ``image_edits``
make what they are shown. The leak guard sees to it that a refused image leaves nothing behind.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE
from image_causes import causes, extent_causes
from image_edits import SPAN, edits, hostile_numbers, number_fields, twins
from image_model import RAW, ZSTD, Hook, Image, Usage, build, fields, forge, parse
from image_parts import zstd
from image_readers import (
    READERS,
    Slot,
    background,
    eager,
    judge,
    refusal,
    sample,
    stream,
    verify,
    verify_stream,
)

import pgalloc
from pgalloc import (
    FileRange,
    MemoryFile,
    OutOfMemoryError,
    SnapshotCorruptError,
    SnapshotError,
    SnapshotVersionError,
    testing,
)
from pgalloc.testing import without_loaders

ENCODINGS = pytest.mark.parametrize("encoding", [RAW, ZSTD], ids=["raw", "zstd"])
EDITS = int(os.environ.get("PGALLOC_EDITS", "600"))
BIT_STEP = int(os.environ.get("PGALLOC_BIT_STEP", "61"))
PAGES = {RAW: 9, ZSTD: 8}


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot()
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[None]:
    """No loaders: starting them takes most of the time of a restore."""
    with without_loaders():
        yield


@ENCODINGS
def test_the_sample_is_sound(slot: Slot, encoding: int) -> None:
    """Or nothing here would mean anything."""
    data = build(sample(encoding))
    assert judge(slot, data)
    assert len(data) == PAGES[encoding] * PAGE
    assert {extent.encoding for extent in parse(data).extents} == {encoding}
    assert len(parse(data).extents) == 2


# --- damage --------------------------------------------------------------------------------------


def refuse_flips(slot: Slot, data: bytes, bits: list[int]) -> None:
    slot.put(data)
    for bit in bits:
        at = bit // 8
        slot.patch(at, bytes([data[at] ^ 1 << bit % 8]))
        for read in (verify, eager, stream):
            error = refusal(read, slot)
            assert isinstance(error, SnapshotError), f"{read.__name__}, bit {bit}: {error!r}"
        slot.patch(at, data[at : at + 1])
    assert slot.image() == data
    assert refusal(verify, slot) is None


@ENCODINGS
@pytest.mark.usefixtures("alone")
def test_flipped_bits(slot: Slot, encoding: int) -> None:
    """Each bit of what the tables name."""
    data = build(sample(encoding))
    named = [
        8 * (field.offset + i) + bit
        for field in fields(data)
        if field.is_number and field.width < 128
        for i in range(field.width)
        for bit in range(8)
    ]
    assert len(named) > 3000
    refuse_flips(slot, data, named)


@pytest.mark.parametrize(
    ("encoding", "page"),
    [(encoding, page) for encoding in PAGES for page in range(PAGES[encoding])],
)
@pytest.mark.usefixtures("alone")
def test_flipped_bits_of_a_page(slot: Slot, encoding: int, page: int) -> None:
    """One bit in 61; every one with PGALLOC_BIT_STEP=1, as `image_driver --every-bit` does."""
    bits = list(range(page * PAGE * 8, (page + 1) * PAGE * 8, BIT_STEP))
    refuse_flips(slot, build(sample(encoding)), bits)


@ENCODINGS
def test_flipped_bits_before_loaders(slot: Slot, encoding: int) -> None:
    data = build(sample(encoding))
    refuse_flips(slot, data, random.Random(1).sample(range(2 * 8 * PAGE, 8 * len(data)), 100))


@ENCODINGS
@pytest.mark.usefixtures("alone")
def test_every_truncation(slot: Slot, encoding: int) -> None:
    data = build(sample(encoding))
    slot.put(data)
    for size in reversed(range(len(data))):
        slot.cut(size)
        assert isinstance(refusal(verify, slot), SnapshotCorruptError), size
        near_border = size % PAGE in (0, 1, PAGE - 1)
        if near_border or size % 13 == 0 or size < 100:
            for read in (verify_stream, eager, stream, background):
                assert isinstance(refusal(read, slot), SnapshotCorruptError), size


@ENCODINGS
def test_trailing_bytes(slot: Slot, encoding: int) -> None:
    data = build(sample(encoding))
    for more in (b"\0", b"x", bytes(PAGE), data[-PAGE:], data):
        slot.put(data + more)
        for read in READERS:
            assert isinstance(refusal(read, slot), SnapshotCorruptError)


def test_names_with_nul_bytes(slot: Slot) -> None:
    """save_hook() does not take them; the format does."""
    hooks = [Hook("a\0b", b"1"), Hook("a\0c", b"22")]
    data = build(Image(PAGE, 0, hooks=hooks))
    assert judge(slot, data)
    slot.put(data)
    assert verify(slot).hooks == {"a\0b": 1, "a\0c": 2}


def test_what_is_no_image(slot: Slot) -> None:
    rng = random.Random(2)
    for junk in (b"", b"\x89PNG\r\n", bytes(PAGE), bytes(9 * PAGE), rng.randbytes(9 * PAGE)):
        assert not judge(slot, junk)


# --- forgery -------------------------------------------------------------------------------------


def swapped(data: bytes, first: str, second: str) -> bytes:
    """Two fields, each with the other's bytes."""
    named = {field.name: field for field in fields(data)}
    bytes_of = {n: data[named[n].offset : named[n].end] for n in (first, second)}
    return forge(data, {first: bytes_of[second], second: bytes_of[first]})


def test_swapped_extents(slot: Slot) -> None:
    image = sample()
    image.extents[0].page_map = image.extents[1].page_map = 1
    image.extents[0].page_count, image.extents[0].stored = 1, b"q" * PAGE
    image.extents[1].start -= PAGE
    data = build(image)
    assert judge(slot, data)
    head = {n: data[(2 + 2 * n) * PAGE : (3 + 2 * n) * PAGE] for n in (0, 1)}
    page = {n: data[(3 + 2 * n) * PAGE : (4 + 2 * n) * PAGE] for n in (0, 1)}
    front, back = data[: 2 * PAGE], data[6 * PAGE :]
    middle = b"".join
    for extents in (
        middle([head[0], page[1], head[1], page[0]]),
        middle([head[1], page[1], head[0], page[0]]),
        middle([head[1], page[0], head[0], page[1]]),
        middle([head[0], page[0], head[0], page[0]]),
        middle([page[0], head[0], page[1], head[1]]),
    ):
        assert not judge(slot, front + extents + back)
        assert not judge(slot, front + back)
    for name in ("start", "offset"):
        fixed = swapped(data, f"extent[0].{name}", f"extent[1].{name}")
        assert not judge(slot, fixed)
        assert not judge(slot, swapped(fixed, f"index[0].{name}", f"index[1].{name}"))
    image.extents.reverse()
    assert not judge(slot, build(image))
    # With the contents and their checksums exchanged it is simply another image.
    data_swapped = swapped(data, "extent[0].data", "extent[1].data")
    assert judge(slot, data_swapped)


@pytest.mark.usefixtures("alone")
@ENCODINGS
def test_every_field_says_something_hostile(slot: Slot, encoding: int) -> None:
    """One field at a time, with its copies and without; the checksums always fit.

    Each image is shown to verify_image() and to one of the other readers in turn; to all of them
    with PGALLOC_BIT_STEP=1.
    """
    data = build(sample(encoding))
    others = itertools.cycle(READERS[1:])
    taken = 0
    for field, value in number_fields(data):
        for number in hostile_numbers(value, field.width):
            readers = READERS if BIT_STEP == 1 else [READERS[0], next(others)]
            taken += judge(slot, forge(data, {field.name: number}), readers)
            if copies := twins(data, field.name):
                forged = forge(data, dict.fromkeys([field.name, *copies], number))
                taken += judge(slot, forged, readers)
    assert taken > 30  # references, cgroups, ends of what is used: not all of it is wrong


@pytest.mark.parametrize("read", [eager, stream])
def test_different_causes_have_different_messages(slot: Slot, read: Callable[[Slot], Any]) -> None:
    messages: dict[str, str] = {}
    for cause, image in causes().items():
        assert not judge(slot, image), cause
        error = refusal(read, slot)
        is_version = cause in ("version", "page size of another machine")
        assert type(error) is (SnapshotVersionError if is_version else SnapshotCorruptError), cause
        message = re.sub(r"\d+", "#", str(error))
        if read is stream and cause in ("index: magic", "index: order"):
            continue  # not known to be the index; not told from an overlap
        assert message not in messages, f"{cause} and {messages[message]}: {error}"
        messages[message] = cause
    assert len(messages) > 60


@pytest.mark.usefixtures("alone")
def test_random_edits(slot: Slot, tmp_path: Path) -> None:
    """Never a crash, a hang, or something else than the image says. PGALLOC_EDITS for more."""
    bases = [build(sample(RAW)), build(sample(ZSTD)), build(Image(PAGE, 0))]
    bases.append(build(Image(PAGE, SPAN, [Usage(0, 3 * PAGE), Usage(5 * PAGE, 6 * PAGE)])))
    taken = 0
    for number, image in enumerate(itertools.islice(edits(EDITS, bases), EDITS)):
        try:
            taken += judge(slot, image)
        except BaseException as error:
            (tmp_path / "edited").write_bytes(image)
            error.add_note(f"edit {number} of {EDITS}: {tmp_path / 'edited'}")
            raise
    assert EDITS / 10 < taken < EDITS / 2


# --- memory --------------------------------------------------------------------------------------

TOO_MUCH = [
    {"header.metadata_length": 1 << 40},
    {"header.metadata_length": 1 << 40, "header.usage_count": 1 << 35},
    {"header.usage_count": 1 << 59},
    {"header.restore_id_length": 65_536},
    {"header.hook_count": 65_536},
    {"hook[0].payload_length": 1 << 40},
    {"hook[1].payload_length": (1 << 64) - 1},
    {"trailer.extent_count": 1 << 40, "index.extent_count": 1 << 40},
    {"trailer.image_size": 1 << 50, "trailer.index_offset": 1 << 49},
    {"extent[0].page_count": 2**32 - 1, "index[0].page_count": 2**32 - 1},
    {"extent[0].stored_length": 1 << 60, "index[0].stored_length": 1 << 60},
    {"header.file_size": 1 << 62},
]


def peak_growth(call: Callable[[], Any]) -> int:
    """How much more memory than before the process had at some time during a call."""

    def kib(name: str) -> int:
        line = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert line is not None
        return int(line[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = kib("VmRSS")
    call()
    return (kib("VmHWM") - before) * 1024


@pytest.mark.parametrize("changes", TOO_MUCH, ids=lambda changes: " ".join(changes))
@ENCODINGS
def test_what_is_announced_takes_no_memory(
    slot: Slot, encoding: int, changes: dict[str, int]
) -> None:
    """Announced, but not there: refused before there is memory for it."""
    slot.put(forge(build(sample(encoding)), changes))

    def show_all() -> None:
        for read in READERS:
            error = refusal(read, slot)
            # A reader that does not restore has no use for a large file.
            assert error is not None or (read in (verify, verify_stream) and is_file_size)
            assert isinstance(error, OutOfMemoryError) == (is_file_size and error is not None)

    is_file_size = "header.file_size" in changes
    assert peak_growth(show_all) < 8 << 20


def test_a_hole_announced_as_metadata_takes_no_memory(slot: Slot) -> None:
    """A file of 9 pages and a hole of 256 MiB, or of a TiB."""
    for size in (256 << 20, 1 << 40):
        slot.put(forge(build(sample()), {"header.metadata_length": size}))
        slot.cut(size + 8 * PAGE)
        assert peak_growth(lambda: refusal(verify, slot)) < 32 << 20
        assert isinstance(refusal(verify, slot), (SnapshotError, OutOfMemoryError))


def test_a_frame_that_decodes_to_more_takes_no_memory(slot: Slot) -> None:
    """A frame of a few KiB stands for 256 MiB; the extent has four pages."""
    image = sample(ZSTD)
    compressor = zstd().ZstdCompressor()
    frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()
    extent = image.extents[0]
    extent.page_count, extent.page_map = 4, 0b1111
    image.usage[0].end = 4 * PAGE
    extent.stored = frame
    assert len(frame) < 4 * PAGE * 4
    data = build(image)
    slot.put(data)
    for read in READERS:
        growth = peak_growth(lambda read=read: refusal(read, slot))  # type: ignore[misc]
        assert isinstance(refusal(read, slot), SnapshotCorruptError)
        assert growth < 32 << 20


# --- in the background ---------------------------------------------------------------------------


@pytest.mark.parametrize("cause", sorted(extent_causes()))
def test_damage_in_one_extent_is_for_those_who_touch_it(slot: Slot, cause: str) -> None:
    slot.put(extent_causes()[cause])
    with MemoryFile.restore(slot.path, background=True) as file:
        assert file.wait_loaded(20)
        for number, letter in ((1, b"c"), (0, b"\0")):
            start = SPAN + number * PAGE
            assert bytes(file.map_range(FileRange(start, start + PAGE))) == letter * PAGE
        assert bytes(file.map_range(FileRange(4 * PAGE, 5 * PAGE))) == bytes(PAGE)
        for _ in range(2):
            with pytest.raises(SnapshotCorruptError):
                file.map_range(FileRange(0, PAGE))
        progress = file.load_progress()
        assert progress.pending_bytes == 0
        assert progress.failed_bytes > 0
        # Code that does not need it can go on without it.
        file.dec_ref(FileRange(0, 4 * PAGE))
        file.dec_ref(FileRange(0, 4 * PAGE))
        assert file.wait_for_reclaim(20)
        with file.allocate(4 * PAGE) as again:
            assert bytes(again) == bytes(4 * PAGE)
        testing.verify(file)
    assert pgalloc.memory_accounting().total() == 0
