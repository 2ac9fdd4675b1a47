"""Each allocation fails once in some calls, and nothing is left.

To be run in a process of its own, with the kind of allocations, ``python`` or ``native``, and the
names of the calls. Native ones fail where tests/preload/failing_new.cc is preloaded.
"""

from __future__ import annotations

import _testcapi
import ctypes
import faulthandler
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from public_calls import CALLS, Call, Left, Things, start_what_stays

import pgalloc
from pgalloc import _core, testing

_LARGE = 8 << 20  # several threads clear it
_ALLOCATIONS_MAX = 10_000
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


def _recycle(file: pgalloc.MemoryFile) -> None:
    with testing.pause_reclaimer(file):
        for _ in range(2):
            with file.allocate(_LARGE, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT):
                pass


def _fill_a_slab(cache: pgalloc.Cache) -> None:
    """The first value of its size: it gets a slab."""
    cache.clear()
    cache["key"] = b"value"


NOT_PUBLIC = {
    "CacheStore": Call("", "", lambda it: _core.CacheStore(it.file, "lru", None, True)),
    "a slab of a cache": Call("", "", lambda it: _fill_a_slab(it.cache)),
    "recycled pages": Call("", "", lambda it: _recycle(it.file)),
    "SegmentSet": Call("", "", lambda it: testing.SegmentSet().insert(0, 1, 2, False)),
    "ranges": Call("", "", lambda it: repr(it.pages.range.intersect(it.pages.range))),
    "verify": Call("", "", lambda it: testing.verify(it.file)),
    "update_usage of groups": Call("", "", lambda it: it.file.update_usage([0])),
}


def _close(server: pgalloc.Server) -> None:
    """Python may need memory to call close(); then it is called again."""
    try:
        server.close()
    except MemoryError:
        server.close()
        raise


# Instead of those of the same names, between whose steps a signal handler must find no moment.
CLOSED_AGAIN = {
    "serve": Call("", "", lambda it: _close(it.file.serve(it.folder / "other"))),
    "cache: serve": Call("", "", lambda it: _close(it.cache.serve(it.folder / "other"))),
}

# Makes a call whose allocation with that number fails: whether there was one, and what is wrong.
Fails = Callable[[Call, Things, int], tuple[bool, str]]


def _without_python_s(call: Call, things: Things, number: int) -> tuple[bool, str]:
    try:
        _testcapi.set_nomemory(number, number + 1)
        call.make(things)
        _testcapi.remove_mem_hooks()
    except (MemoryError, OSError, KeyError, pgalloc.Error):
        return True, ""
    except Exception as error:
        _testcapi.remove_mem_hooks()
        return True, "" if any(text in str(error) for text in _OF_PYTHON) else repr(error)
    finally:
        _testcapi.remove_mem_hooks()
    return False, ""


def _without_native(call: Call, things: Things, number: int) -> tuple[bool, str]:
    """The call may do without, too."""
    preloaded = ctypes.CDLL(None)
    preloaded.fail_allocation.argtypes = [ctypes.c_int64]
    wrong = ""
    preloaded.fail_allocation(number)
    try:
        call.make(things)
    except (MemoryError, OSError, KeyError, pgalloc.Error):
        pass
    except Exception as error:
        wrong = repr(error)
    failed = bool(preloaded.allocation_failed())
    preloaded.fail_allocation(-1)
    return failed, wrong


def _try(name: str, call: Call, fails: Fails, folder: Path) -> None:
    things = Things(folder)
    call.make(things)
    before = things.left()
    for number in range(_ALLOCATIONS_MAX):
        failed, wrong = fails(call, things, number)
        if wrong:
            print(f"{name}, allocation {number}: {wrong}")
        if not failed:
            break  # it needs no more
    else:
        print(f"{name}: there are more allocations than are tried")
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
    calls = {**CALLS, **NOT_PUBLIC, **CLOSED_AGAIN}
    fails = {"python": _without_python_s, "native": _without_native}[sys.argv[1]]
    for name in sys.argv[2:]:
        print(name, file=sys.stderr, flush=True)  # which one hangs
        with tempfile.TemporaryDirectory() as folder:
            _try(name, calls[name], fails, Path(folder))
    print("all")


if __name__ == "__main__":
    main()
