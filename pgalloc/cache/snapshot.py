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
from pgalloc.cache.slabs import Slab
from pgalloc.errors import SnapshotCorruptError, SnapshotVersionError

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
    with cache._lock:
        cache._check_usable()
        cache._store.tidy()
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
    offset = time.time() - time.monotonic()
    with cache._lock:
        while not decoder.at_end:
            _decode_holder(cache, decoder, offset)
        cache._store.make_way(0)


def _decode_holder(cache: Cache, decoder: Decoder, clock_offset: float) -> None:
    start, length, slot, count = _HOLDER.unpack(decoder.take(_HOLDER.size))
    if start + length >= 2**63 or (slot == 0 and count != 1) or slot > length:
        raise SnapshotCorruptError("a cache in the image has impossible pages")
    allocation = Allocation.adopt(cache.file, _core.FileRange(start, start + length))
    number = next(cache._store.numbers)
    slab = Slab(allocation, slot, number) if slot else None
    entries = []
    try:
        for _ in range(count):
            entry = _decode_value(decoder, allocation, slab, cache, clock_offset)
            entries.append(entry)
    except BaseException:
        allocation.release()
        raise
    if slab is not None:
        slab.is_open = False
        slab.entries = {entry.start: entry for entry in entries}
        slab.fresh = length // slot * slot
        slab.vacant = [at for at in range(0, slab.fresh, slot) if at not in slab.entries]
    if not entries or (slab is not None and len(slab.entries) != count):
        allocation.release()
        if entries:
            raise SnapshotCorruptError("two values of a cache in the image share a slot")
        return
    if slab is None:
        entries[0].id = number
    for entry in entries:
        cache._store.enter(entry)
    cache._store.hold(entries[0] if slab is None else slab, entries[0])


def _decode_value(
    decoder: Decoder, allocation: Allocation, slab: Slab | None, cache: Cache, clock_offset: float
) -> Entry:
    start, length, expires, tagged = _VALUE.unpack(decoder.take(_VALUE.size))
    room = allocation.nbytes if slab is None else slab.slot
    if length > room or start + room > allocation.nbytes or (slab and start % slab.slot):
        raise SnapshotCorruptError("a value of a cache in the image is not where it could be")
    tag: Key | None = decoder.key() if tagged else None
    key = decoder.key()
    if not 0 <= expires < float("inf"):
        raise SnapshotCorruptError("a value of a cache in the image has no time to expire")
    expires_at = expires - clock_offset if expires else None
    number = next(cache._store.numbers)
    return Entry(key, allocation, start, length, number, slab, expires_at, tag)
