"""No Python program aborts the interpreter, nor hangs in it: errors are exceptions.

Each program runs in a process of its own, and has to come to its end.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from waiting import TIMEOUT_S, environment


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def _assert_ends(code: str) -> None:
    run = _run(code)
    assert run.returncode == 0, run.stderr


PROGRAMS = {
    "a __class__ that raises": """
import pgalloc
class Raises:
    @property
    def __class__(self): raise ValueError("no")
for call in (
    lambda it: pgalloc.Allocation(it, pgalloc.FileRange(0, 4096)),
    lambda it: pgalloc.MemoryFile.total_usage(it),
    lambda it: mf.allocate(4096)._unpin_into(it, 1, 2),
    lambda it: mf.allocate(4096)._count_hits_in(it),
):
    mf = pgalloc.MemoryFile()
    try: call(Raises())
    except (TypeError, ValueError): pass
    else: raise AssertionError
""",
    "a __class__ that lies": """
import pgalloc
from pgalloc import _core
mf = pgalloc.MemoryFile()
for native in (_core.PeerFile, _core.MemoryFile, _core.DiscardQueue):
    class Lies:
        __slots__ = ("a", "b", "c", "d")
        @property
        def __class__(self): return native
    it = Lies()
    it.a = it.b = it.c = it.d = 1
    for call in (
        lambda: pgalloc.Allocation(it, pgalloc.FileRange(0, 4096)),
        lambda: pgalloc.MemoryFile.total_usage(it),
        lambda: _core.PeerFile.dec_ref(it, pgalloc.FileRange(0, 4096)),
        lambda: mf.allocate(4096)._unpin_into(it, 1, 2),
    ):
        try: call()
        except TypeError: pass
        else: raise AssertionError(native)
""",
    "an object that changes its class": """
import pgalloc
from pgalloc import _core
bound = [t for t in vars(_core).values() if isinstance(t, type)]
class SlottedFile(_core.MemoryFile): __slots__ = ()
class SlottedLedger(_core.Ledger): __slots__ = ()
for it in (_core.Ledger(), SlottedLedger(), pgalloc.MemoryFile(), pgalloc.MemoryFile()._evictables):
    for other in (*bound, SlottedFile, SlottedLedger, type(it).__base__, pgalloc.PeerFile):
        if isinstance(it, other): continue
        try: it.__class__ = other
        except TypeError: pass
        else: raise AssertionError((it, other))
""",
    "pickles of native objects": """
import copy, pickle, pgalloc
mf = pgalloc.MemoryFile()
for it in (pgalloc.Ledger(), pgalloc.Ledger()._core, mf._evictables, mf, mf.allocate(4096)):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try: pickle.dumps(it, protocol)
        except TypeError as error: assert "pickle" in str(error), error
        else: raise AssertionError(it)
try: copy.copy(mf._evictables)
except TypeError: pass
""",
    "instances of what has none": """
from pgalloc import _core
types = [t for t in vars(_core).values() if isinstance(t, type)]
assert len(types) > 15
types += [base for t in types for base in t.__mro__ if base is not object]
for type_ in types:
    for make in (lambda: type_(), lambda: type_.__new__(type_)):
        try: make()
        except Exception: pass
""",
    "a recursion that allocates at its end": """
import pgalloc
mf = pgalloc.MemoryFile()
def deeper():
    try: mf.allocate(4096)
    finally: deeper()
try: deeper()
except RecursionError: pass
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_errors_are_exceptions(name: str) -> None:
    _assert_ends(PROGRAMS[name])


WITHOUT_MEMORY = """
import faulthandler, os, sys, tempfile
faulthandler.enable()
import _testcapi
import pgalloc
from pgalloc import _core, testing
PAGE = pgalloc.PAGE_SIZE

class User:
    def evict(self, range): pass

def calls():
    mf = pgalloc.MemoryFile(capacity=1 << 30)
    held = mf.allocate(4 * PAGE)
    held.view()[:4] = b"data"
    ledger = pgalloc.Ledger()
    user = User()
    folder = tempfile.mkdtemp()
    image = os.path.join(folder, "image")
    mf.mark_savable()
    mf.save(image)
    loose = pgalloc.MemoryFile.restore(image)
    cache = pgalloc.Cache(1 << 20)
    cache["key"] = b"value"
    return {
        "MemoryFile": lambda: pgalloc.MemoryFile(capacity=1 << 30).close(),
        "allocate": lambda: mf.allocate(PAGE),
        "allocate_range": lambda: mf.dec_ref(mf.allocate_range(PAGE)),
        "reader": lambda: mf.allocate(PAGE, reader=lambda b: len(b)),
        "Allocation": lambda: pgalloc.Allocation(mf, mf.allocate_range(PAGE)),
        "clone": lambda: held.clone(),
        "slice": lambda: held.slice(0, PAGE),
        "view": lambda: held.view(readonly=True),
        "properties": lambda: (held.range, held.nbytes, held.address, held.file, held.pinned),
        "pin": lambda: (held.unpin(), held.pin()),
        "adopt": lambda: loose.unadopted() and pgalloc.Allocation.adopt(loose, held.range),
        "map_range": lambda: mf.map_range(held.range),
        "inc_ref": lambda: (mf.inc_ref(held.range), mf.dec_ref(held.range)),
        "decommit": lambda: held.decommit(),
        "update_usage": lambda: mf.update_usage([0]),
        "usage": lambda: (mf.usage(), mf.usage(1), mf.total_usage()),
        "segments": lambda: (mf.segments(), mf.stats(), str(mf)),
        "mark_evictable": lambda: mf.mark_evictable(user, pgalloc.EvictableRange(0, 8)),
        "mark_unevictable": lambda: mf.mark_unevictable(user, pgalloc.EvictableRange(0, 4)),
        "mark_all_unevictable": lambda: mf.mark_all_unevictable(user),
        "wait": lambda: (mf.wait_for_evictions(1), mf.wait_for_reclaim(1)),
        "save": lambda: mf.save(image),
        "restore": lambda: pgalloc.MemoryFile.restore(image).close(),
        "background": lambda: pgalloc.MemoryFile.restore(image, background=True).close(),
        "images": lambda: (pgalloc.inspect_image(image), pgalloc.verify_image(image)),
        "Ledger": lambda: pgalloc.Ledger(),
        "ledger": lambda: (ledger.inc(1, pgalloc.MemoryKind.MAPPED), ledger.total(), ledger.copy()),
        "accounting": lambda: pgalloc.memory_accounting().copy(),
        "cache": lambda: (cache.get("key"), cache.pop("other", None), "key" in cache, len(cache)),
        "cache set": lambda: cache.__setitem__("key", b"value"),
        "Cache": lambda: pgalloc.Cache(1 << 20).close(),
        "leases": lambda: mf.leases(),
        "serve": lambda: mf.serve(os.path.join(folder, "socket")).close(),
        "Queue": lambda: _core.DiscardQueue(mf, "lru"),
        "SegmentSet": lambda: testing.SegmentSet().insert(0, 1, 2, False),
        "range": lambda: repr(pgalloc.FileRange(0, PAGE).intersect(held.range)),
        "verify": lambda: testing.verify(mf),
    }

for name, call in calls().items():
    if sys.argv[1:] and name not in sys.argv[1:]: continue
    for i in range(%d):
        try:
            _testcapi.set_nomemory(i, i + 1)
            call()
            _testcapi.remove_mem_hooks()
            break  # it needs no more
        except (MemoryError, OSError, KeyError, pgalloc.Error): pass
        except SystemError as error:  # CPython's own, where it has no memory for a frame
            assert str(error) == "error return without exception set", error
        except Exception as error:
            _testcapi.remove_mem_hooks()
            if "can't allocate lock" in str(error) or "can't start new thread" in str(error):
                continue  # CPython's own: there is no MemoryError of them
            print("%%s, allocation %%d: %%r" %% (name, i, error))
        finally:
            _testcapi.remove_mem_hooks()
print("all")
"""


def test_memory_that_runs_out_is_a_memory_error() -> None:
    """Each allocation of each call fails once."""
    pytest.importorskip("_testcapi")
    run = _run(WITHOUT_MEMORY % 1000)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all\n"


# --- Subinterpreters, and the end ----------------------------------------------------------------

IN_SUBINTERPRETER = """
try: import _xxsubinterpreters as interpreters
except ImportError: import _interpreters as interpreters
%s
try: error = interpreters.run_string(interpreters.create(), "import pgalloc")
except Exception as raised: error = raised
assert "main interpreter" in str(error), error
%s
"""


@pytest.mark.parametrize("first", ["", "import pgalloc"])
@pytest.mark.parametrize("then", ["", "import pgalloc; pgalloc.MemoryFile().allocate(4096)"])
def test_a_subinterpreter_gets_an_import_error(first: str, then: str) -> None:
    """Whether or not the main interpreter has it; and that one can have it all the same."""
    _assert_ends(IN_SUBINTERPRETER % (first, then))


ALIVE_AT_THE_END = """
import builtins, sys, threading
import pgalloc
class User:
    def evict(self, range): pass
class Late:
    def __del__(self):
        try: pgalloc.MemoryFile().allocate(4096)
        except Exception: pass
kept = [pgalloc.Cache("4M"), pgalloc.MemoryFile(), User(), Late()]
kept.append(pgalloc.pressure.default_monitor())
kept[0]["a"] = b"x"
kept[1].mark_evictable(kept[2], pgalloc.EvictableRange(0, 1))
kept += [kept[1].allocate(4096), kept[0]["a"], kept[1].allocate(4096).view(), iter(kept[0])]
kept.append(kept)
thread = threading.Thread(target=lambda: kept); thread.start(); thread.join()
builtins.kept = sys.modules["kept"] = kept
"""


def test_the_end_is_silent() -> None:
    """What is alive when the interpreter ends, and used by finalizers then, prints nothing."""
    run = _run(ALIVE_AT_THE_END)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
