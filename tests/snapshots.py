"""What the tests of snapshots share: files with contents, and what is the same after a restore."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

from conftest import PAGE, update_usage

from pgalloc import Direction, FileRange, MemoryFile, MemoryKind, Segment

KINDS = [kind for kind in MemoryKind if kind is not MemoryKind.MAPPED]


def merged(segments: list[Segment]) -> list[Segment]:
    """The usage set as an image keeps it for ever: without what is committed at the moment."""
    result: list[Segment] = []
    for segment in segments:
        here = segment._replace(known_committed=0)
        if result and result[-1].end == here.start and result[-1][2:] == here[2:]:
            here = here._replace(start=result.pop().start)
        result.append(here)
    return result


def contents(mf: MemoryFile) -> list[bytes]:
    """The bytes of all ranges in use, read beside the mapping."""
    mf.wait_loaded()
    return [_read(mf, segment) for segment in merged(mf.segments())]


def _read(mf: MemoryFile, segment: Segment) -> bytes:
    return os.pread(mf.fileno(), segment.end - segment.start, segment.start)


def random_file(
    seed: int, *, pages_max: int = 2000, backing: Any = None
) -> tuple[MemoryFile, list[FileRange]]:
    """A file with ranges of all kinds, references, cgroups, sizes, densities, and holes."""
    rng = random.Random(seed)
    mf = MemoryFile(backing, restore_id=f"seed {seed}")
    ranges: list[FileRange] = []
    pages = 0
    while pages < pages_max:
        length = rng.choice([1, 2, 3, 17, 64, 600, 1024, 1500]) * PAGE
        pages += length // PAGE
        range_ = mf.allocate_range(
            length,
            kind=rng.choice(KINDS),
            memcg_id=rng.choice([0, 0, 5, 2**32 - 1]),
            direction=rng.choice(list(Direction)),
        )
        for _ in range(rng.choice([0, 0, 1, 3])):
            mf.inc_ref(range_)
        if rng.random() < 0.2:  # a part with more references than the rest
            mf.inc_ref(FileRange(range_.start, range_.start + PAGE))
        view = mf.map_range(range_)
        density = rng.choice([0, 0.02, 0.5, 1])
        for page in range(length // PAGE):
            if rng.random() < density:
                data = bytes(PAGE) if rng.random() < 0.2 else rng.randbytes(PAGE)
                view[page * PAGE : (page + 1) * PAGE] = data
        ranges.append(range_)
        if rng.random() < 0.3 and len(ranges) > 3:
            _free(mf, ranges.pop(rng.randrange(len(ranges))))
    assert mf.wait_for_reclaim(20)
    update_usage(mf)
    return mf, ranges


def _free(mf: MemoryFile, gone: FileRange) -> None:
    for segment in mf.segments():
        start, end = max(segment.start, gone.start), min(segment.end, gone.end)
        for _ in range(segment.refs if start < end else 0):
            mf.dec_ref(FileRange(start, end))


def image_of(mf: MemoryFile, **options: Any) -> bytes:
    target = io.BytesIO()
    mf.save(target, **options)
    return target.getvalue()


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
