"""A Cache takes many times the limit, value after value, while another thread holds the GIL.

Every value that comes back is checked page by page, and what was written a moment ago has to be
there more often than not. Prints one JSON object; exit status 1 and a traceback if a promise was
broken. With ``--plant`` nothing keeps it below the limit: ``dict`` is a
dict of bytes, ``guard`` a Cache whose guard was switched off.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import MutableMapping
from typing import Any

import pgalloc
from limit.hog import Hog
from limit.values import SIZE_MAX, Values
from limit.without import stop_guard

PLANTS = ("dict", "guard")


class ForgetfulError(Exception):
    """A cache that keeps nothing stays below every limit."""


class PlainDict(dict[int, Any]):
    """The cache that every program begins with."""

    def __setitem__(self, key: int, value: memoryview) -> None:
        super().__setitem__(key, bytes(value))


class WriteThrough:
    """One writer that reads back what it wrote a moment and long ago."""

    def __init__(self, cache: MutableMapping[int, Any], options: argparse.Namespace) -> None:
        self._cache = cache
        self._total = options.nbytes
        self._values = Values(options.seed, options.size_max)
        self._random = random.Random(options.seed)
        self._sizes: list[int] = []
        self.hits = self.misses = 0
        self.slowest_put_s = 0.0

    def run(self) -> None:
        """Writes until the total is reached, then looks for everything once more."""
        written = 0
        while written < self._total:
            key, size = len(self._sizes), self._values.size()
            value = self._values.make(key, size)
            begin = time.perf_counter()
            self._cache[key] = value
            self.slowest_put_s = max(self.slowest_put_s, time.perf_counter() - begin)
            self._sizes.append(size)
            written += size
            # What was just written has to be there in a healthy cache, old keys may be.
            self._look(max(0, key - self._random.randrange(8)))
            self._look(self._random.randrange(key + 1))
        for key in range(len(self._sizes)):
            self._look(key)
        if 2 * self.hits < self.puts:
            raise ForgetfulError(f"{self.hits} hits after {self.puts} puts")

    @property
    def puts(self) -> int:
        return len(self._sizes)

    def _look(self, key: int) -> None:
        found = self._cache.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            with memoryview(found) as view:
                self._values.check(key, self._sizes[key], view)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nbytes", type=int, required=True, help="how much to write")
    parser.add_argument("--size-max", type=int, default=SIZE_MAX, help="of the largest value")
    parser.add_argument("--copy-mib", type=int, default=48, help="how much the hog copies; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=PLANTS)
    options = parser.parse_args()
    cache: MutableMapping[int, Any]
    cache = PlainDict() if options.plant == "dict" else pgalloc.Cache(maxsize="8G")
    if options.plant == "guard":
        stop_guard()
    work = WriteThrough(cache, options)
    begin = time.perf_counter()
    with Hog(options.copy_mib << 20) as hog:
        work.run()
    said = {
        "seconds": time.perf_counter() - begin,
        "puts": work.puts,
        "hits": work.hits,
        "misses": work.misses,
        "slowest_put_s": work.slowest_put_s,
        "copies": hog.copies,
        "longest_copy_s": hog.longest_s,
        "stats": str(cache.stats()) if isinstance(cache, pgalloc.Cache) else "",
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
