"""items() and values() of a cache, whose values may go at any moment: they pass over those.

Looking at them counts neither as a hit nor as a miss.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import TYPE_CHECKING

from pgalloc.cache.keys import Key

if TYPE_CHECKING:
    from pgalloc.cache.mapping import Cache


class CacheItems(ItemsView[Key, memoryview]):
    """The keys of the moment with their values, as far as these are still there."""

    _mapping: Cache

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        view = self._mapping._look_again(item[0])
        return view is not None and bool(view == item[1])

    def __iter__(self) -> Iterator[tuple[Key, memoryview]]:
        for key in self._mapping:
            view = self._mapping._look_again(key)
            if view is not None:
                yield key, view


class CacheValues(ValuesView[memoryview]):
    """The values of the keys of the moment, as far as these are still there."""

    _mapping: Cache

    def __iter__(self) -> Iterator[memoryview]:
        for _, view in CacheItems(self._mapping):
            yield view

    def __contains__(self, value: object) -> bool:
        return any(view == value for view in self)
