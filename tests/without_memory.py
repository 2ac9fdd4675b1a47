"""Each allocation of Python's fails once in some calls, and nothing is left.

To be run in a process of its own, with the names of the calls.
"""

from __future__ import annotations

import _testcapi
import faulthandler
import gc
import sys
import tempfile
import time
from pathlib import Path

from public_calls import CALLS, Call, Left, Things, start_what_stays

import pgalloc
from pgalloc import _core, testing

_ALLOCATIONS_MAX = 1000
_SETTLE_S_MAX = 5.0
# CPython's own and numpy's, where they have no memory for a lock, a thread, a frame, a method that
# they look up, a module that they know, or a buffer that can be written to.
_OF_PYTHON = (
    "os.PathLike",
    "Can't pickle",
    "assignment destination is read-only",
    "can't allocate lock",
    "can't start new thread",
    "error return without exception set",
)
# CPython loses the arguments of a call that it has no memory for; here they are descriptors.
LOSES_ARGUMENTS = ("Monitor",)

NOT_PUBLIC = {
    "DiscardQueue": Call("", "", lambda it: _core.DiscardQueue(it.file, "lru")),
    "SegmentSet": Call("", "", lambda it: testing.SegmentSet().insert(0, 1, 2, False)),
    "ranges": Call("", "", lambda it: repr(it.pages.range.intersect(it.pages.range))),
    "verify": Call("", "", lambda it: testing.verify(it.file)),
    "update_usage of groups": Call("", "", lambda it: it.file.update_usage([0])),
}


def _fails(call: Call, things: Things, number: int) -> str:
    """What a call says of its allocation with that number that failed; empty if it makes none."""
    try:
        _testcapi.set_nomemory(number, number + 1)
        call.make(things)
        _testcapi.remove_mem_hooks()
    except (MemoryError, OSError, KeyError, pgalloc.Error):
        return "typed"
    except Exception as error:
        _testcapi.remove_mem_hooks()
        if any(text in str(error) for text in _OF_PYTHON):
            return "typed"
        return repr(error)
    finally:
        _testcapi.remove_mem_hooks()
    return ""


def _try(name: str, call: Call, folder: Path) -> None:
    things = Things(folder)
    call.make(things)
    before = things.left()
    for number in range(_ALLOCATIONS_MAX):
        said = _fails(call, things, number)
        if not said:
            break  # it needs no more
        if said != "typed":
            print(f"{name}, allocation {number}: {said}")
    call.make(things)
    if not call.bare and name not in LOSES_ARGUMENTS:
        _expect(name, things, before)
    things.close()


def _expect(name: str, things: Things, before: Left) -> None:
    deadline = time.monotonic() + _SETTLE_S_MAX
    while not things.is_back(before):
        if time.monotonic() > deadline:  # time: a bound on a hang
            print(f"{name}: left {things.left()} instead of {before}")
            return
        gc.collect()


def main() -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(50, exit=True)  # names one that hangs
    sys.unraisablehook = lambda _: None  # it fails in finalizers, too
    start_what_stays()
    calls = {**CALLS, **NOT_PUBLIC}
    for name in sys.argv[1:]:
        print(name, file=sys.stderr, flush=True)  # which one hangs
        with tempfile.TemporaryDirectory() as folder:
            _try(name, calls[name], Path(folder))
    print("all")


if __name__ == "__main__":
    main()
