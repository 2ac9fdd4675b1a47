"""A value in a cache: where it is, and what was said of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pgalloc.allocation import Allocation

if TYPE_CHECKING:
    from pgalloc.cache.keys import Key
    from pgalloc.cache.slabs import Slab


# Of Python's heap, for a value: its Entry, its places in dicts and heaps, its numbers; and for its
# tag, which may be that of no other value.
_INDEX_BYTES = 350
_TAG_BYTES = 300


def index_cost(key: Key, tag: Key | None) -> int:
    """About how many bytes of Python's heap the index takes for a value."""
    return _INDEX_BYTES + _size(key) + (0 if tag is None else _TAG_BYTES + _size(tag))


def _size(key: Key) -> int:
    size = sys.getsizeof(key)
    return size + sum(map(_size, key)) if isinstance(key, tuple) else size


class Entry:
    """Immutable, but for the key's place in the cache. ``slab`` is None for a value by itself."""

    __slots__ = (
        "allocation",
        "cost",
        "expires",
        "id",
        "key",
        "length",
        "slab",
        "start",
        "stop",
        "tag",
    )

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
        self.cost = index_cost(key, tag)
