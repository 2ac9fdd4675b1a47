"""Images of every format version that ever was are read for ever.

The numbers here were written down when the images were made (tests/golden/make.py). Neither they
nor the images change any more; a new version adds its own.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE, stored
from golden.make import golden_file
from image_model import parse
from snapshots import image_of, merged

import pgalloc
from pgalloc import FileRange, MemoryFile, MemoryKind, Segment, testing

pytestmark = pytest.mark.skipif(PAGE != 4096, reason="the images are of machines with 4 KiB pages")

GOLDEN = Path(__file__).parents[1] / "golden"

# Name, sha256 of the image, its length, and its extents as inspect_image() shows them.
IMAGES = {
    "version-1-raw.image": (
        "6edc0d86bc5a7ad8e05498ada8ee7af64d3137609379ab16bad1c96c4b965ec1",
        69632,
        [
            (0, 57344, 8192, 3, 12288, "raw"),
            (2097152, 3145728, 24576, 2, 8192, "raw"),
            (3145728, 4194304, 36864, 1, 4096, "raw"),
            (5238784, 5242880, 45056, 1, 4096, "raw"),
            (1073733632, 1073741824, 53248, 1, 4096, "raw"),
        ],
    ),
    "version-1-zstd.image": (
        "8b4e6eab00e165899fe662606bd21692d3eb856658003377c3a6355f40e5477d",
        57344,
        [
            (0, 57344, 8192, 3, 2630, "zstd"),
            (2097152, 3145728, 16384, 2, 1346, "zstd"),
            (3145728, 4194304, 24576, 1, 4096, "raw"),
            (5238784, 5242880, 32768, 1, 4096, "raw"),
            (1073733632, 1073741824, 40960, 1, 4096, "raw"),
        ],
    ),
}

HUGE_IMAGE = GOLDEN / "version-2-zstd.image"
HUGE_RANGES = [
    (0, 4206592, MemoryKind.TMPFS, True),
    (1073741824, 1073750016, MemoryKind.ANONYMOUS, False),
]

# Start, end, kind, committed bytes, references, memory cgroup.
SEGMENTS = [
    (0, 8192, MemoryKind.PAGE_CACHE, 8192, 3, 7),
    (8192, 12288, MemoryKind.PAGE_CACHE, 0, 2, 7),
    (12288, 28672, MemoryKind.PAGE_CACHE, 0, 1, 7),
    (28672, 32768, MemoryKind.PAGE_CACHE, 4096, 1, 7),
    (49152, 53248, MemoryKind.SYSTEM, 0, 1, 4294967295),
    (53248, 57344, MemoryKind.RAMDISKFS, 0, 1, 0),
    (2097152, 2101248, MemoryKind.ANONYMOUS, 4096, 1, 0),
    (2101248, 3141632, MemoryKind.ANONYMOUS, 0, 1, 0),
    (3141632, 3149824, MemoryKind.ANONYMOUS, 8192, 1, 0),
    (3149824, 5238784, MemoryKind.ANONYMOUS, 0, 1, 0),
    (5238784, 5242880, MemoryKind.ANONYMOUS, 4096, 1, 0),
    (1073733632, 1073741824, MemoryKind.TMPFS, 8192, 1, 0),
]

# Offset of every page that is not zero, its last four bytes, and its sha256, or half of that.
PAGES = {
    0: (b"\xb2\rh\xc4", "a1c7437be90e1337"),
    4096: (b"d\x1a\xd1\x88", "8a9bbe679383b65f"),
    28672: (b"\x16'9L", "063577d200d757a4"),
    2097152: (b"\xc84\xa2\x10", "5006551379a04dc9"),
    3141632: (b"zA\n\xd4", "f692c3f3c733f602"),
    3145728: (b",Ns\x98", "6b7874e7df85e3de"),
    5238784: (b"\xde[\xdb\\", "13d04d45b92c6868"),
    1073737728: (b"\x90iD!", "71ca51871d74a231"),
}

HOOKS = {
    "bytes": bytes(range(256)),
    "nothing": b"",
    "\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc": b"pages 0 and 1 are mine",
}

all_images = pytest.mark.parametrize("name", IMAGES)


def check_page(number: int, offset: int, page: bytes) -> None:
    last, digest = PAGES[offset]
    assert page[:9] == b"%04dpages" % number
    assert page[-4:] == last
    assert hashlib.sha256(page).hexdigest()[:16] == digest


def test_all_golden_images_are_tested() -> None:
    assert {path.name for path in GOLDEN.glob("*.image")} == {*IMAGES, HUGE_IMAGE.name}


@all_images
def test_the_image_is_what_it_was(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    assert len(data) == IMAGES[name][1]
    assert hashlib.sha256(data).hexdigest() == IMAGES[name][0]


@all_images
@pytest.mark.parametrize("mode", ["path", "stream", "background"])
def test_restored(name: str, mode: str) -> None:
    source: Any = GOLDEN / name
    if mode == "stream":
        source = io.BytesIO(source.read_bytes())
    taken: dict[str, bytes] = {}
    hooks = {hook: lambda file, data, hook=hook: taken.update({hook: data}) for hook in HOOKS}
    with MemoryFile.restore(source, background=mode == "background", hooks=hooks) as mf:
        assert taken == HOOKS
        assert mf.restore_id == "golden \u00e9\u4e2d"
        assert mf.total_size == 1073741824
        assert merged(mf.segments()) == merged([Segment(*row) for row in SEGMENTS])
        for number, offset in enumerate(PAGES):
            page = FileRange(offset, offset + 4096)
            check_page(number, offset, bytes(mf.map_range(page)))
        assert mf.wait_loaded(20)
        for start, end, *_ in SEGMENTS:
            for offset in {*range(start, end, 4096)} - PAGES.keys():
                assert os.pread(mf.fileno(), 4096, offset) == bytes(4096)
        # What was mapped and never touched takes nothing.
        assert stored(mf) == sum(mf.usage().values()) == 8 * 4096
        assert mf.usage()[MemoryKind.PAGE_CACHE] == 3 * 4096
        assert [tuple(row) for row in mf.unadopted()][:3] == [
            (0, 8192, 3),
            (8192, 12288, 2),
            (12288, 32768, 1),
        ]
        testing.verify(mf)


@all_images
@pytest.mark.parametrize("look", [pgalloc.inspect_image, pgalloc.verify_image])
@pytest.mark.parametrize("as_stream", [False, True])
def test_described(name: str, look: Any, as_stream: bool) -> None:
    path = GOLDEN / name
    info = look(io.BytesIO(path.read_bytes()) if as_stream else path)
    extents = [
        (e.start, e.end, e.offset, e.stored_pages, e.stored_bytes, e.encoding) for e in info.extents
    ]
    assert extents == IMAGES[name][2]
    assert info.segments == [Segment(*row) for row in SEGMENTS]
    assert info.hooks == {hook: len(payload) for hook, payload in HOOKS.items()}
    assert (info.version, info.page_size, info.file_size) == (1, 4096, 1073741824)
    assert (info.image_bytes, info.restore_id) == (IMAGES[name][1], "golden \u00e9\u4e2d")
    assert (info.stored_pages, info.zero_pages_skipped) == (8, 1)


@all_images
def test_the_model_reads_the_same(name: str) -> None:
    image = parse((GOLDEN / name).read_bytes(), 4096)
    pages = image.pages()
    assert pages.keys() == PAGES.keys()
    for number, offset in enumerate(PAGES):
        check_page(number, offset, pages[offset])


def test_today_the_same_file_gives_the_same_image() -> None:
    """A file may be cut into extents otherwise some day: then this goes, and the images stay."""
    with golden_file() as mf:
        assert image_of(mf) == (GOLDEN / "version-1-raw.image").read_bytes()


def test_version_2_keeps_what_is_for_huge_pages() -> None:
    info = pgalloc.verify_image(HUGE_IMAGE)
    assert (info.version, info.restore_id, info.stored_pages) == (2, "huge", 515)
    with MemoryFile.restore(HUGE_IMAGE) as mf:
        testing.verify(mf)
        used = [s for s in mf.segments() if s.refs]
        starts = {s.start for s in used} & {row[0] for row in HUGE_RANGES}
        assert len(starts) == 2
        assert {(s.kind, s.huge) for s in used} == {row[2:] for row in HUGE_RANGES}
        assert sum(s.end - s.start for s in used) == sum(row[1] - row[0] for row in HUGE_RANGES)
        assert stored(mf) == 515 * 4096
        for page in range(512):
            assert os.pread(mf.fileno(), 4096, page * 4096) == b"%08d" % page * 512
        for offset, byte in ((2101248, 2), (4198400, 2), (1073745920, 3)):
            assert os.pread(mf.fileno(), 4096, offset) == bytes([byte]) + bytes(4095)
