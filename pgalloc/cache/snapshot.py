"""A cache in an image: which pages hold which values, and back.

The payload: a version, then each holder: the start and the length of its pages, the size of its
slots (0 for a value by itself), and its values: offset, length, the wall-clock second at which it
expires (0: never), tag, key. Numbers are little-endian; docs/cache.md draws it.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.cache.entry import Entry
from pgalloc.cache.keys import Decoder, Key, encode_key, encode_length
from pgalloc.cache.slabs import Slab, is_possible
from pgalloc.errors import (
    RangeError,
    RefCountError,
    SnapshotCorruptError,
    SnapshotVersionError,
)

if TYPE_CHECKING:
    from pgalloc.cache.mapping import Cache

_VERSION = 1
_HOLDER = struct.Struct("<QQII")  # start, length, slot size, number of values
_VALUE = struct.Struct("<QQd?")  # offset, length, expires, whether there is a tag


def encode(cache: Cache | None) -> bytes:
    """What an image has to say of a cache; of one that is gone, nothing.

    REQUIRES: nothing is discarded from here until the image is written.
    """
    if cache is None:
        return b""
    with cache._changes.lock:
        cache._changes.catch_up()
        offset = time.time() - time.monotonic()
        parts = [encode_length(_VERSION)]
        for holder in cache._store.holders.values():
            entries = [holder] if isinstance(holder, Entry) else list(holder.entries.values())
            slot = 0 if isinstance(holder, Entry) else holder.slot
            range_ = holder.allocation.range
            parts.append(_HOLDER.pack(range_.start, range_.length, slot, len(entries)))
            for entry in entries:
                expires = 0.0 if entry.expires is None else entry.expires + offset
                parts.append(_VALUE.pack(entry.start, entry.length, expires, entry.tag is not None))
                if entry.tag is not None:
                    parts.append(encode_key(entry.tag))
                parts.append(encode_key(entry.key))
        return b"".join(parts)


def decode(cache: Cache, payload: bytes) -> None:
    """Fill an empty cache with what encode() wrote. Raises SnapshotError."""
    if not payload:
        return
    decoder = Decoder(payload)
    if decoder.number(4) != _VERSION:
        raise SnapshotVersionError("the image has a cache of a later version")
    cache._changes.make(_decode_all, cache, decoder, otherwise=None)


def _decode_all(cache: Cache, decoder: Decoder) -> None:
    offset = time.time() - time.monotonic()
    while not decoder.at_end:
        _decode_holder(cache, decoder, offset)
    cache._store.shrink()


def _decode_holder(cache: Cache, decoder: Decoder, clock_offset: float) -> None:
    start, length, slot, count = _HOLDER.unpack(decoder.take(_HOLDER.size))
    possible = is_possible(slot, length) if slot else count == 1
    if start + length >= 2**63 or not possible:
        raise SnapshotCorruptError("a cache in the image has impossible pages")
    try:
        allocation = Allocation.adopt(cache.file, _core.FileRange(start, start + length))
    except (RangeError, RefCountError) as error:
        raise SnapshotCorruptError("a cache in the image has pages that are not its own") from error
    number = cache._store.number()
    slab = Slab(allocation, slot, number) if slot else None
    try:
        entries = [
            _decode_value(decoder, allocation, slab, cache, clock_offset) for _ in range(count)
        ]
        if slab is not None:
            _fill(slab, entries)
    except BaseException:
        allocation.release()
        raise
    if not entries:
        allocation.release()
        return
    if slab is None:
        entries[0].id = number
    else:
        cache._store.slabs.take_over(slab)
    cache._store.hold(entries[0] if slab is None else slab)
    for entry in entries:
        cache._store.enter(entry)


def _fill(slab: Slab, entries: list[Entry]) -> None:
    slab.fresh = slab.allocation.nbytes // slab.slot * slab.slot
    slab.entries = {entry.start: entry for entry in entries}
    if len(slab.entries) != len(entries):
        raise SnapshotCorruptError("two values of a cache in the image share a slot")
    if len({entry.key for entry in entries}) != len(entries):
        raise SnapshotCorruptError("a cache in the image has a key twice")


def _decode_value(
    decoder: Decoder, allocation: Allocation, slab: Slab | None, cache: Cache, clock_offset: float
) -> Entry:
    start, length, expires, tagged = _VALUE.unpack(decoder.take(_VALUE.size))
    room = allocation.nbytes if slab is None else slab.slot
    misplaced = start % slab.slot if slab else start
    if length > room or start + room > allocation.nbytes or misplaced:
        raise SnapshotCorruptError("a value of a cache in the image is not where it could be")
    tag: Key | None = decoder.key() if tagged else None
    key = decoder.key()
    if not 0 <= expires < float("inf"):
        raise SnapshotCorruptError("a value of a cache in the image has no time to expire")
    expires_at = expires - clock_offset if expires else None
    number = cache._store.number()
    return Entry(key, allocation, start, length, number, slab, expires_at, tag)
