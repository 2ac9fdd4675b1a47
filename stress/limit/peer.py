"""A peer in a memory cgroup with a limit fills pages of an owner without one, and unpins them.

The pages are charged to the peer's group, and only the owner can discard them: it does when the
peer's guard asks. Every other range is committed when it is allocated, the others are filled
through the mapping. Prints one JSON object; exit status 1 and a traceback if pin() did not tell the
truth about the contents. With ``--plant`` the peer's guard is switched off.
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle

import pgalloc
from limit.without import stop_guard
from pgalloc import AllocationMode

_RANGE = 1 << 20
_MODES = (AllocationMode.ALLOCATE_AND_COMMIT, AllocationMode.ALLOCATE_ONLY)


class UntrueError(Exception):
    """pin() said that contents survived which did not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--served", required=True, help="the owner's socket")
    parser.add_argument("--nbytes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    peer = pgalloc.connect(options.served)
    if options.plant:
        stop_guard()
    contents = {}
    for number, mode in zip(range(options.nbytes // _RANGE), cycle(_MODES)):
        allocation = peer.allocate(_RANGE, mode=mode)
        fill = (options.seed + number) % 255 + 1
        with allocation.view() as view:
            view[:] = bytes([fill]) * _RANGE
        allocation.unpin()
        contents[allocation] = fill
    survived = 0
    for allocation, fill in contents.items():
        if not allocation.pin():
            continue
        survived += 1
        with allocation.view() as view:
            if view != bytes([fill]) * _RANGE:
                raise UntrueError(f"{allocation.range} survived, said pin(), but it did not")
    print(json.dumps({"ranges": len(contents), "survived": survived}))


if __name__ == "__main__":
    main()
