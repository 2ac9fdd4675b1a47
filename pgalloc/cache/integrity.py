"""What has to be true of a cache's tables, and how to make it true again.

Thread safety: externally synchronised (the cache's lock).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pgalloc.cache.entry import Entry
from pgalloc.cache.slabs import Slab
from pgalloc.cache.store import Store


def broken_invariant(store: Store) -> str | None:
    """The first invariant of the tables that is broken; None if they are right."""
    return next(_broken(store), None)


def _broken(store: Store) -> Iterator[str]:
    holders, entries = store.holders, store.entries
    held = sorted((h.allocation.range.start, h.allocation.range.end) for h in holders.values())
    if any(end > start for (_, end), (start, _) in pairwise(held)):
        yield "two holders have the same page"
    if store.held_bytes != sum(end - start for start, end in held):
        yield "held_bytes is not the sum of the holders' pages"
    if store.maxsize is not None and store.size > store.maxsize:
        yield "the size exceeds maxsize"
    if store.value_bytes != sum(entry.length for entry in entries.values()):
        yield "value_bytes is not the sum of the values' lengths"
    if store.index_bytes != sum(entry.cost for entry in entries.values()):
        yield "index_bytes is not the sum of what the values cost there"
    there = 0
    for number, holder in holders.items():
        values = [holder] if isinstance(holder, Entry) else list(holder.entries.values())
        there += len(values)
        if holder.id != number or holder.allocation.released:
            yield f"holder {number} is not what it is known as"
        if any(entries.get(entry.key) is not entry for entry in values):
            yield f"holder {number} has a value that is no key's"
        if isinstance(holder, Slab):
            yield from _broken_in_slab(store, holder)
        elif holder.allocation.pinned and not holder.allocation._in_use:
            yield f"holder {number} is out of the core's reach"
    if there != len(entries):
        yield "a key's value is in no holder"
    if any(entry.key != key for key, entry in entries.items()):
        yield "a value is under another key than its own"
    tagged = {(tag, key, id(e)) for tag, some in store._tags.items() for key, e in some.items()}
    if tagged != {(e.tag, e.key, id(e)) for e in entries.values() if e.tag is not None}:
        yield "the tags are not those of the values"
    expiring = {id(entry) for _, _, entry in store._expiries}
    if any(e.expires is not None and id(e) not in expiring for e in entries.values()):
        yield "a value would never expire"


def _broken_in_slab(store: Store, slab: Slab) -> Iterator[str]:
    slots = [*slab.entries, *slab.vacant]
    if sorted(slots) != list(range(0, slab.fresh, slab.slot)):
        yield f"slab {slab.id} has slots that are taken twice, or lost"
    if any(entry.slab is not slab or entry.start != at for at, entry in slab.entries.items()):
        yield f"slab {slab.id} has a value of another slab"
    if any(entry.length > slab.slot for entry in slab.entries.values()):
        yield f"slab {slab.id} has a value that is longer than its slot"
    if slab.is_open != (store.slabs._open.get(slab.slot) is slab):
        yield f"slab {slab.id} is open, but not known as open"
    if slab.is_open:
        if not slab.allocation.pinned:
            yield f"slab {slab.id} is filled while it may be discarded"
    elif slab.live == 0:
        yield f"slab {slab.id} is empty"
    elif slab.allocation.pinned and not slab.allocation._in_use:
        yield f"slab {slab.id} is out of the core's reach"
    known = slab.id in store.slabs._vacant.get(slab.slot, {})
    if known != (bool(slab.vacant) and not slab.is_open):
        yield f"slab {slab.id} has vacant slots that are not known"


def mend(store: Store) -> None:
    """Put the tables together again, from the values that can be found: a change was cut short.

    The counts of what happened may then be off by what it was about. May itself be cut short.
    """
    found: dict[Any, Entry] = {}
    holders: dict[int, Entry | Slab] = {}
    before = [*store.holders.values(), *store.slabs.open_slabs()]
    for key, entry in list(store.entries.items()):
        if entry.allocation.released:
            del store.entries[key]
            continue
        found[key] = entry
        holder = entry.slab or entry
        holders[holder.id] = holder
    live = {id(holder) for holder in holders.values()}
    for holder in before:
        if id(holder) not in live:
            holder.allocation.release()
    for holder in holders.values():
        if isinstance(holder, Slab):
            holder.entries = {}
    for entry in found.values():
        if entry.slab is not None:
            entry.slab.entries[entry.start] = entry
    store.restart(found, holders)
