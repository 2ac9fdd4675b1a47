"""CRC-32C in numpy, for the model of the image format: obvious rather than fast, but whole pages.

A checksum is linear in the bits of its message. So each byte of a block contributes the entry of a
table by its place and value, and the state from before is the same as four more bytes to mix in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_BLOCK = 4096


def _tables() -> NDArray[np.uint32]:
    """[place, value]: what a byte at that place of a block contributes to the block's checksum."""
    one = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = (one >> np.uint32(1)) ^ (one & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    places = np.empty((_BLOCK, 256), dtype=np.uint32)
    places[-1] = one
    for place in range(_BLOCK - 1, 0, -1):
        places[place - 1] = (places[place] >> 8) ^ one[places[place] & 255]
    return places


_PLACES = _tables()
_ONE_BYTE = [int(value) for value in _PLACES[-1]]
_FIRST_FOUR = [[int(value) for value in row] for row in _PLACES[:4]]


def crc32c(data: bytes) -> int:
    """As in RFC 3720, appendix B.4."""
    odd = len(data) % _BLOCK
    state = 0xFFFFFFFF
    for byte in data[:odd]:
        state = (state >> 8) ^ _ONE_BYTE[(state ^ byte) & 255]
    blocks = np.frombuffer(data, dtype=np.uint8, offset=odd).reshape(-1, _BLOCK)
    for block in blocks:
        before = state.to_bytes(4, "little")
        state = int(np.bitwise_xor.reduce(_PLACES[np.arange(_BLOCK), block]))
        for table, byte in zip(_FIRST_FOUR, before, strict=True):
            state ^= table[byte]
    return state ^ 0xFFFFFFFF
