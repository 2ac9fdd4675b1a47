"""A value in a cache: where it is, and what was said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgalloc.allocation import Allocation

if TYPE_CHECKING:
    from pgalloc.cache.keys import Key
    from pgalloc.cache.slabs import Slab


class Entry:
    """Immutable, but for the key's place in the cache. ``slab`` is None for a value by itself."""

    __slots__ = ("allocation", "expires", "id", "key", "length", "slab", "start", "stop", "tag")

    def __init__(
        self,
        key: Key,
        allocation: Allocation,
        start: int,
        length: int,
        number: int,
        slab: Slab | None,
        expires: float | None,
        tag: Key | None,
    ) -> None:
        self.key = key
        self.allocation = allocation
        self.start = start
        self.stop = start + length
        self.length = length
        self.id = number
        self.slab = slab
        self.expires = expires  # on time.monotonic()'s clock
        self.tag = tag
