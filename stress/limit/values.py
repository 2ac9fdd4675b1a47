"""Values that can be told from each other page by page: each page begins with key and number.

All come out of one buffer, so that making one costs no memory and next to no time.
"""

from __future__ import annotations

import math
import random
from array import array

PAGE = 4096
_WORDS = PAGE // 8
SIZE_MIN = 4 << 10
SIZE_MAX = 32 << 20


class WrongValueError(Exception):
    """What came back is not what was put in."""


class Values:
    """One buffer as large as the largest value; ``make`` is for one thread at a time."""

    def __init__(self, seed: int, size_max: int = SIZE_MAX) -> None:
        self._random = random.Random(seed)
        self._buffer = bytearray(self._random.randbytes(PAGE) * (size_max // PAGE))
        self._size_max = size_max

    def size(self) -> int:
        """Between 4 KiB and the largest, each power of two as often as the others."""
        exponent = self._random.uniform(math.log2(SIZE_MIN), math.log2(self._size_max))
        return int(2**exponent) // 8 * 8

    def make(self, key: int, size: int) -> memoryview:
        """The value of ``key``; valid until the next call."""
        value = memoryview(self._buffer)[:size]
        value.cast("Q")[::_WORDS] = _stamps(key, size)
        return value

    def check(self, key: int, size: int, found: memoryview) -> None:
        """Raises WrongValueError unless ``found`` is what ``make`` made; looks at every page."""
        if len(found) != size:
            raise WrongValueError(f"value {key} has {len(found)} bytes instead of {size}")
        stamps, expected = found.cast("Q")[::_WORDS], memoryview(_stamps(key, size))
        if stamps != expected:
            wrong = [n for n, stamp in enumerate(stamps) if stamp != expected[n]]
            raise WrongValueError(f"value {key}: {len(wrong)} of {len(stamps)} pages: {wrong[:5]}")
        # What is between the stamps, of one page.
        start = self._random.randrange(len(stamps)) * PAGE
        inside = slice(start + 8, min(start + PAGE, size))
        if found[inside] != memoryview(self._buffer)[inside]:
            raise WrongValueError(f"value {key} differs in the page at {start}")


def _stamps(key: int, size: int) -> array[int]:
    """One for each page that is begun."""
    first = (key << 24) + 1
    return array("Q", range(first, first + -(-size // PAGE)))
