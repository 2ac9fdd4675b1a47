"""items() and values() of a mapping whose values may go at any moment: they pass over those."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from pgalloc.cache.keys import Key


class CacheItems(ItemsView[Key, memoryview]):
    """The keys of the moment with their values, as far as these are still there."""

    _mapping: Mapping[Key, memoryview]

    def __iter__(self) -> Iterator[tuple[Key, memoryview]]:
        for key in self._mapping:
            view = self._mapping.get(key)
            if view is not None:
                yield key, view


class CacheValues(ValuesView[memoryview]):
    """The values of the keys of the moment, as far as these are still there."""

    _mapping: Mapping[Key, memoryview]

    def __iter__(self) -> Iterator[memoryview]:
        for _, view in CacheItems(self._mapping):
            yield view

    def __contains__(self, value: object) -> bool:
        return any(view == value for view in self)
