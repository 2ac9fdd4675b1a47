"""Images with an extent that cannot be loaded."""

from __future__ import annotations

import random
from pathlib import Path

import pgalloc
from pgalloc import PAGE_SIZE, FileRange


def damage(path: Path, rng: random.Random) -> FileRange | None:
    """Flip a byte of one extent's data, or of its head. The pages that are lost by that."""
    extents = pgalloc.inspect_image(path).extents
    if not extents:
        return None
    extent = rng.choice(extents)
    at = extent.offset + rng.choice([0, PAGE_SIZE]) + rng.randrange(min(40, extent.stored_bytes))
    with path.open("r+b") as image:
        image.seek(at)
        byte = image.read(1)[0]
        image.seek(at)
        image.write(bytes([byte ^ 1 << rng.randrange(8)]))
    return FileRange(extent.start, extent.end)
