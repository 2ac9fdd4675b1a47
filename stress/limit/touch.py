"""Unpinned memory is touched through its mapping as fast as the kernel gives pages.

Nothing asks for room first, as writes to a Cache do: the guard alone sees the usage grow. Prints
one JSON object; exit status 1 and a traceback if pin() did not tell the truth about the contents.
With ``--plant`` the guard is switched off.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pgalloc
from limit.without import stop_guard

_MADV_POPULATE_WRITE = 23

ORDERS = ("forwards", "backwards", "random", "again")

# ctypes lets go of the GIL for the call of a CDLL.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class UntrueError(Exception):
    """pin() said that contents survived which did not, or a page has foreign contents."""


def _fill(address: int, view: memoryview) -> None:
    """Every byte, without the GIL."""
    _libc.memset(address, 1, len(view))


def _stride(address: int, view: memoryview) -> None:
    """One byte of each page, with the GIL held."""
    view[:: pgalloc.PAGE_SIZE] = b"\x01" * (len(view) // pgalloc.PAGE_SIZE)


def _populate(address: int, view: memoryview) -> None:
    """The kernel itself goes from page to page: nothing commits faster. Without the GIL."""
    if _libc.madvise(address, len(view), _MADV_POPULATE_WRITE):
        raise OSError(ctypes.get_errno(), "madvise")


WAYS: dict[str, Callable[[int, memoryview], None]] = {
    "fill": _fill,
    "stride": _stride,
    "populate": _populate,
}


def touch_all(
    memory_file: pgalloc.MemoryFile, options: argparse.Namespace, order: str
) -> dict[str, Any]:
    """One round over fresh allocations; says how many survived."""
    count = options.nbytes // options.allocation
    allocations = [memory_file.allocate(options.allocation) for _ in range(count)]
    places = []
    for allocation in allocations:
        places.append((allocation.address, memory_file.map_range(allocation.range)))
        allocation.unpin()
    indices = list(range(count))
    if order == "backwards":
        indices.reverse()
    elif order == "random":
        random.Random(options.seed).shuffle(indices)
    elif order == "again":
        indices *= 2
    begin = time.perf_counter()
    for index in indices:
        WAYS[options.way](*places[index])
    seconds = time.perf_counter() - begin
    survived = 0
    for allocation, (_, view) in zip(allocations, places, strict=True):
        if allocation.pin():
            survived += 1
            if options.way != "populate" and view[:: pgalloc.PAGE_SIZE].tobytes().strip(b"\x01"):
                raise UntrueError("contents survived, said pin(), but there are none")
        view.release()
        allocation.release()
    memory_file.wait_for_reclaim()
    return {"order": order, "seconds": seconds, "allocations": count, "survived": survived}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nbytes", type=int, required=True, help="how much to touch in each order")
    parser.add_argument("--allocation", type=int, default=8 << 20, help="bytes of one allocation")
    parser.add_argument("--orders", nargs="*", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--way", choices=WAYS, default="fill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge", action="store_true", help="in huge pages, if there are any")
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    with pgalloc.MemoryFile(huge_pages="always" if options.huge else "auto") as memory_file:
        if options.plant:
            stop_guard()
        rounds = [touch_all(memory_file, options, order) for order in options.orders]
    print(json.dumps({"way": options.way, "rounds": rounds}))


if __name__ == "__main__":
    main()
