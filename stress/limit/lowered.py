"""A Cache is written to at full speed while its limit is lowered from 8 GiB to 256 MiB.

The driver lowers it when less than 200 MiB are in use (``lowering``). Prints one JSON object; exit
status 1 and a traceback if a value that came back is not the one that was put. With ``--plant``
nothing watches the limit: the kernel must kill.
"""

from __future__ import annotations

import argparse
import json
import time

import pgalloc
from limit.values import Values
from limit.without import stop_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, required=True, help="of the values")
    parser.add_argument("--nbytes", type=int, required=True, help="how much to write in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    cache: pgalloc.Cache[int, memoryview] = pgalloc.Cache(maxsize="8G")
    if options.plant:
        stop_guard()
    value = Values(options.seed, options.size).make(0, options.size)
    begin = time.perf_counter()
    for key in range(options.nbytes // options.size):
        cache[key] = value
    seconds = time.perf_counter() - begin
    found = [cache.get(key) for key in range(options.nbytes // options.size)]
    kept = [view for view in found if view is not None]
    if any(view != value for view in kept):
        raise AssertionError("a value is not the one that was put")
    said = {"seconds": seconds, "values": len(kept), "stats": str(cache.stats())}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
