"""How the golden images were made: ``python tests/golden/make.py`` in the checkout.

They are kept for ever, so that every later pgalloc is tested to read what earlier ones wrote. This
script never overwrites one. An image of a new format version, or of something that the ones here do
not show, gets a name of its own, here and in tests/unit/test_golden_images.py.

    version-1-raw.image    format version 1, compression=None
    version-1-zstd.image   the same file, compression="zstd"
    version-2-zstd.image   format version 2: a file with huge pages, compression="zstd"

All were made by pgalloc 0.1.0 on x86-64 with pages of 4096 bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pgalloc import Direction, FileRange, MemoryFile, MemoryKind

PAGE = 4096
MIB = 1 << 20


def golden_file() -> MemoryFile:
    """All kinds, both directions, references, cgroups, holes, pages of zeros, hooks."""
    mf = MemoryFile(restore_id="golden \u00e9\u4e2d")
    cache = mf.allocate_range(8 * PAGE, kind=MemoryKind.PAGE_CACHE, memcg_id=7)
    mf.inc_ref(FileRange(cache.start, cache.start + 3 * PAGE))
    mf.inc_ref(FileRange(cache.start, cache.start + 2 * PAGE))
    gone = mf.allocate_range(4 * PAGE)
    mf.allocate_range(PAGE, kind=MemoryKind.SYSTEM, memcg_id=2**32 - 1)
    heap = mf.allocate_range(3 * MIB)
    top = mf.allocate_range(2 * PAGE, kind=MemoryKind.TMPFS, direction=Direction.TOP_DOWN)
    mf.allocate_range(PAGE, kind=MemoryKind.RAMDISKFS)
    mf.dec_ref(gone)
    for number, offset in enumerate(
        [
            *(cache.start, cache.start + PAGE, cache.start + 7 * PAGE),
            *(heap.start, heap.start + MIB - PAGE, heap.start + MIB, heap.end - PAGE),
            top.start + PAGE,
        ]
    ):
        view = mf.map_range(FileRange(offset, offset + PAGE))
        # Every page begins with its number, has a text to compress, and ends with what is not.
        text = b"%04d" % number + b"pages of the golden image; " * 100
        view[:] = text + bytes(i * i * (number + 1) >> 3 & 255 for i in range(PAGE - len(text)))
    mf.map_range(FileRange(top.start, top.start + PAGE))[0] = 0  # there, and zero
    assert mf.wait_for_reclaim(20)
    assert mf.update_usage()
    mf.save_hook("bytes", save=lambda: bytes(range(256)))
    mf.save_hook("nothing", save=lambda: b"")
    mf.save_hook("\u00fc" * 10, save=lambda: b"pages 0 and 1 are mine")
    return mf


def huge_file() -> MemoryFile:
    """A huge allocation that ends within its third huge page, and a small one."""
    mf = MemoryFile(restore_id="huge")
    huge = mf.allocate_range(4 * MIB + 3 * PAGE, kind=MemoryKind.TMPFS, huge=True)
    small = mf.allocate_range(2 * PAGE)
    view = mf.map_range(huge)
    for number in range(512):  # the first huge page is all there
        view[number * PAGE : (number + 1) * PAGE] = b"%08d" % number * 512
    view[2 * MIB + PAGE] = view[4 * MIB + PAGE] = 2
    mf.map_range(small)[PAGE] = 3
    assert mf.update_usage()
    return mf


def main() -> None:
    """Make the images that are not there."""
    for name, golden, compression in (
        ("version-1-raw", golden_file, None),
        ("version-1-zstd", golden_file, "zstd"),
        ("version-2-zstd", huge_file, "zstd"),
    ):
        path = Path(__file__).with_name(f"{name}.image")
        if path.exists():
            print(f"{path.name} is there, and stays as it is", file=sys.stderr)
            continue
        with golden() as mf:
            mf.save(path, compression=compression)
        path.chmod(0o644)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
