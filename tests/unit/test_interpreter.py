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
from pgalloc import _core
class Raises:
    @property
    def __class__(self): raise ValueError("no")
for call in (
    lambda it: pgalloc.Allocation(it, pgalloc.FileRange(0, 4096)),
    lambda it: pgalloc.MemoryFile.total_usage(it),
    lambda it: _core.CacheStore(it, "lru", None, False),
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
for native in (_core.PeerFile, _core.MemoryFile, _core.CacheStore):
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
        lambda: _core.CacheStore(it, "lru", None, False),
        lambda: _core.cache_stats(it),
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
