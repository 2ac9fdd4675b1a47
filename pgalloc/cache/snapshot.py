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
from pgalloc.cache.keys import Decoder, Key, encode_length
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
    parts = [encode_length(_VERSION)]
    now = time.time()
    for start, length, slot, values in _core.cache_save(cache._store):
        parts.append(_HOLDER.pack(start, length, slot, len(values)))
        for offset, size, seconds, tag, key in values:
            expires = 0.0 if seconds is None else now + seconds
            parts.append(_VALUE.pack(offset, size, expires, tag is not None))
            if tag is not None:
                parts.append(tag)
            parts.append(key)
    return b"".join(parts)


def decode(cache: Cache, payload: bytes) -> None:
    """Fill an empty cache with what encode() wrote. Raises SnapshotError."""
    if not payload:
        return
    decoder = Decoder(payload)
    if decoder.number(4) != _VERSION:
        raise SnapshotVersionError("the image has a cache of a later version")
    now = time.time()
    while not decoder.at_end:
        _decode_holder(cache, decoder, now)


def _decode_holder(cache: Cache, decoder: Decoder, now: float) -> None:
    start, length, slot, count = _HOLDER.unpack(decoder.take(_HOLDER.size))
    if start + length >= 2**63:
        raise SnapshotCorruptError("a cache in the image has impossible pages")
    values = [_decode_value(decoder, now) for _ in range(count)]
    try:
        _core.cache_restore(cache._store, start, length, slot, values)
    except (RangeError, RefCountError) as error:
        raise SnapshotCorruptError("a cache in the image has pages that are not its own") from error


def _decode_value(decoder: Decoder, now: float) -> tuple[int, int, float | None, Key | None, Key]:
    offset, length, expires, tagged = _VALUE.unpack(decoder.take(_VALUE.size))
    tag: Key | None = decoder.key() if tagged else None
    key = decoder.key()
    if not 0 <= expires < float("inf"):
        raise SnapshotCorruptError("a value of a cache in the image has no time to expire")
    return offset, length, expires - now if expires else None, tag, key
