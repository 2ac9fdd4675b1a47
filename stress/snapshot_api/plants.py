"""Bugs on purpose, one at a time: a run that does not find its own is no evidence."""

from __future__ import annotations

import itertools
import os
import random
import sys
from pathlib import Path
from typing import Any

from pgalloc import PAGE_SIZE, MemoryFile
from snapshot_api.damage import damage
from snapshot_api.original import Piece
from snapshot_api.stamps import Style

PLANTS = {
    "page": "images lack a page, and all checksums fit",
    "byte": "a byte of a restored page is another one",
    "adopt": "an owner does not adopt its pages",
    "decommit": "pages that are decommitted stay",
    "error": "an undamaged page cannot be loaded",
    "hang": "an extent never arrives",
}
_STRIKES_EVERY = 20


class Plant:
    """For any thread. Without a name, it does nothing."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._calls = itertools.count(1)
        self._kept: list[Any] = []

    def strikes(self, name: str) -> bool:
        """Whether it is time to do this wrong."""
        return self.name == name and next(self._calls) % _STRIKES_EVERY == 0

    def spoil_image(self, path: Path, rng: random.Random) -> None:
        """Between the save and the restore."""
        if self.name == "error":
            damage(path, rng)
        elif self.name == "page":
            path.write_bytes(_without_a_page(path.read_bytes()))

    def spoil_file(self, file: MemoryFile, pieces: list[Piece]) -> None:
        """Just after the restore."""
        if self.name == "hang":
            self._kept.append(file._load(None, 0.001, True))
        if self.name != "byte":
            return
        file.wait_loaded()
        for piece in pieces:
            if piece.stamp.style is Style.PLAIN:
                os.pwrite(file.fileno(), b"\1", piece.range.start + PAGE_SIZE // 2)
                return


def _without_a_page(data: bytes) -> bytes:
    """The last page of the extent with the most pages is gone."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import image_model

    image = image_model.parse(data)
    raw = [extent for extent in image.extents if extent.encoding == image_model.RAW]
    extent = max(raw, key=lambda extent: extent.stored_pages, default=None)
    if extent is None or extent.stored_pages < 2:
        return data
    extent.stored = extent.stored[:-PAGE_SIZE]
    extent.page_map ^= 1 << (extent.page_map.bit_length() - 1)
    return image_model.build(image)
