"""A file is read three times, so that its pages are in use to the kernel; then a Cache is filled.

The kernel drops page cache for anything else, so the Cache must keep what fits beside nothing.
Prints one JSON object; exit status 1 and a traceback if it kept less than ``--nbytes``. With
``--plant`` so much must stay free as the file takes.
"""

from __future__ import annotations

import argparse
import json

import pgalloc

_VALUE = 1 << 20


class LostError(Exception):
    """The Cache gave up values for which there was room."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nbytes", type=int, required=True, help="of values to be kept")
    parser.add_argument("--read", required=True, help="the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    piece = bytearray(_VALUE)
    for _ in range(3):
        with open(options.read, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    count = options.nbytes // _VALUE
    with pgalloc.Cache[int, bytes]() as cache:
        if options.plant:  # headroom for what the file takes
            pgalloc.pressure.configure(headroom=options.nbytes)
        for round_ in range(2):
            for key in range(count):
                cache[key] = bytes([(options.seed + key + round_) % 256]) * _VALUE
        kept = sum(key in cache for key in range(count))
        if kept < count:
            raise LostError(f"{kept} of {count} values were kept")
        for key, value in cache.items():
            if value[:1] != bytes([(options.seed + key + 1) % 256]):
                raise LostError(f"value {key} is another one")
    print(json.dumps({"values": count, "kept": kept}))


if __name__ == "__main__":
    main()
