"""Zstandard, from the standard library of Python 3.14 or from the extra ``zstd``."""

from __future__ import annotations

import sys
from typing import Protocol

from pgalloc.errors import OptionError, SnapshotCorruptError, SnapshotError


class Codec(Protocol):
    """Turns the pages of an extent into fewer bytes, and back."""

    def encode(self, raw: bytes) -> bytes:
        """The pages as one frame."""

    def decode(self, encoded: bytes, length: int) -> bytes:
        """The bytes of a frame. Raises SnapshotCorruptError unless they are ``length``."""


class _Zstd:
    def __init__(self, level: int | None) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        self._zstd = zstd
        low, high = zstd.CompressionParameter.compression_level.bounds()
        if level is not None and not low <= level <= high:
            raise OptionError(f"level must be from {low} to {high}")
        self._level = level

    def encode(self, raw: bytes) -> bytes:
        return bytes(self._zstd.compress(raw, level=self._level))

    def decode(self, encoded: bytes, length: int) -> bytes:
        # Whatever a frame says of its length, no more than this is ever decoded.
        decompressor = self._zstd.ZstdDecompressor()
        try:
            raw = bytes(decompressor.decompress(encoded, max_length=length + 1))
        except self._zstd.ZstdError as error:
            raise SnapshotCorruptError(f"an extent's zstd frame is damaged: {error}") from None
        if len(raw) != length or not decompressor.eof or decompressor.unused_data:
            raise SnapshotCorruptError(f"an extent's zstd frame does not hold {length} bytes")
        return raw


def zstd(level: int | None = None) -> Codec:
    """The codec. Raises SnapshotError where no module for it is installed."""
    try:
        return _Zstd(level)
    except ImportError:
        raise SnapshotError("zstd needs Python 3.14, or: pip install 'pgalloc[zstd]'") from None
