"""Every public callable against a zoo of bad values: typed errors, and nothing has changed.

A case is one parameter of one callable, with a predicate that says which values are fine there. All
others must be refused with a typed exception. Most of it is about row C1 and the general rule of
docs/behaviour.md that no argument can end the interpreter. The values are in
tests/hostile_zoo.py, the cases in tests/hostile_cases.py and the others beside it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import PAGE
from hostile_cache import cases_of_caches
from hostile_cases import Case, cases_of_testing, cases_of_the_package
from hostile_pressure import cases_of_pressure
from hostile_sharing import cases_of_sharing
from hostile_snapshots import cases_of_snapshots
from hostile_zoo import Hands, UserError, zoo

import pgalloc
from pgalloc import MemoryFile, _core, pressure, testing

CASES = [
    *cases_of_the_package(),
    *cases_of_testing(),
    *cases_of_snapshots(),
    *cases_of_pressure(),
    *cases_of_caches(),
    *cases_of_sharing(),
]

REFUSALS = (TypeError, ValueError, MemoryError, OSError, BufferError, pgalloc.Error, UserError)
# Typed as they are in Python, these say that the value was not considered.
NOT_THOUGHT_OF = (OverflowError, RecursionError, SystemError, AssertionError)

# They take no argument of the caller, or they are plain data.
NO_ARGUMENTS = {
    "memory_accounting",
    "Allocation.clone",
    "Allocation.decommit",
    "Allocation.pin",
    "Allocation.release",
    "Allocation.unpin",
    "Cache.clear",
    "Cache.close",
    "Cache.items",
    "Cache.keys",
    "Cache.popitem",
    "Cache.stats",
    "Cache.values",
    "Ledger.memcg_ids",
    "Ledger.total",
    "MemoryFile.close",
    "MemoryFile.drop_unadopted",
    "MemoryFile.fileno",
    "MemoryFile.huge_usage",
    "MemoryFile.leases",
    "MemoryFile.load_progress",
    "MemoryFile.loaded",
    "MemoryFile.mark_savable",
    "MemoryFile.segments",
    "MemoryFile.start_evictions",
    "MemoryFile.stats",
    "MemoryFile.total_usage",
    "MemoryFile.unadopted",
    "PeerFile.close",
    "PeerFile.fileno",
    "Server.close",
    "Shared.get",
    "Shared.release",
    "SharedList.release",
    "testing.prefault_methods",
    "testing.reset_prefault",
    "testing.syscall_names",
    "testing.SegmentSet",
    "testing.SegmentSet.clear",
    "testing.SegmentSet.gaps",
    "testing.SegmentSet.memory_bytes",
    "testing.SegmentSet.merge_all",
    "testing.SegmentSet.segments",
    "testing.SegmentSet.span",
    "testing.SegmentSet.verify",
    "Ledger",
    "pressure.EventStream.aclose",
    "pressure.EventStream.close",
    "pressure.ManualSource.close",
    "pressure.Monitor.reset_in_child",
    "pressure.Monitor.close",
    "pressure.Monitor.info",
    "pressure.Monitor.park",
    "pressure.Monitor.resume",
    "pressure.Monitor.stats",
    "pressure.PressureLevelListener.reset_in_child",
    "pressure.PressureLevelListener.park",
    "pressure.PressureLevelListener.resume",
    "pressure.PressureLevelListener.stop",
    "pressure.default_monitor",
}
PLAIN_DATA = {
    "CacheStats",
    "ImageExtent",
    "ImageInfo",
    "Lease",
    "LoadProgress",
    "MemoryFileStats",
    "Segment",
    "UnadoptedRange",
    "pressure.GuardStatus",
    "pressure.GuardedLimit",
    "pressure.LimitLevel",
    "pressure.MemoryCgroup",
    "pressure.MonitorInfo",
    "pressure.MonitorStats",
    "pressure.PressureEvent",
    "pressure.PressureInfo",
}


def _public_callables() -> set[str]:
    found = set()
    for prefix, module in (("", pgalloc), ("testing.", testing), ("pressure.", pressure)):
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            if not isinstance(value, type) and type(value).__module__ == "typing":
                continue  # names of types
            if isinstance(value, type) and issubclass(value, BaseException):
                continue
            found.add(prefix + name)
            if (
                isinstance(value, type)
                and prefix + name not in PLAIN_DATA
                and value.__module__ != "enum"
            ):
                found |= {
                    f"{prefix}{name}.{method}"
                    for method in dir(value)
                    if not method.startswith("_")
                    and callable(getattr(value, method))
                    and not hasattr(int, method)
                }
    return found


def test_every_public_callable_has_a_case() -> None:
    covered = {case.name for case in CASES} | NO_ARGUMENTS | PLAIN_DATA
    missing = {
        name
        for name in _public_callables() - covered
        if not name.split(".")[0].startswith(("EvictableUser", "AllocationMode", "Direction"))
        and not name.startswith(("MemoryKind", "DelayedEviction", "Policy"))
    }
    assert not missing, f"add cases for {sorted(missing)}"
    assert {case.name for case in CASES} | NO_ARGUMENTS <= _public_callables()


@pytest.mark.parametrize("module", [pgalloc, testing, pressure], ids=lambda m: m.__name__)
def test_every_public_name_is_exported_once_and_documented(module: ModuleType) -> None:
    names = module.__all__
    assert len(names) == len(set(names))
    assert module.__doc__
    for name in names:
        value = getattr(module, name)
        if isinstance(value, int) and not isinstance(value, type):
            continue  # constants
        if type(value).__module__ == "typing":
            continue  # names of types
        assert inspect.getdoc(value), f"{name} has no docstring"
        if not isinstance(value, type):
            continue
        for method in vars(value):
            if not method.startswith("_") and callable(getattr(value, method)):
                assert inspect.getdoc(getattr(value, method)), f"{name}.{method} has no docstring"
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    }
    assert public - set(names) <= {"SegmentSet"}, "a public name is not in __all__"
    objects = [getattr(module, name) for name in names if callable(getattr(module, name))]
    assert len({id(value) for value in objects}) == len(objects), "two names for one thing"


@pytest.fixture(scope="module", autouse=True)
def owner_and_peers_in_one_process() -> Iterator[None]:
    pgalloc.share(None).release()  # the file that stays as long as the process
    _core.broker_set_own_peers_end(True)
    yield
    _core.broker_set_own_peers_end(False)


@pytest.fixture
def hands() -> Iterator[list[Hands]]:
    """In a list, so that a test can have new ones."""
    held = [Hands()]
    yield held
    held.pop().close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}({case.parameter})")
def test_hostile_values(
    hands: list[Hands], case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = hands[0].state()
    descriptors = before[-2]
    for name, value in zoo().items():
        try:
            result = case.call(hands[0], value)
        except NOT_THOUGHT_OF as error:
            pytest.fail(f"{name}: {error!r}")
        except REFUSALS:
            pass
        except Exception as error:
            if name != "uninitialised MemoryFile" or type(error) is not RuntimeError:
                pytest.fail(f"{name}: {error!r} is not of the documented kinds")
        else:
            assert case.accepts(value), f"{name} was taken: {result!r}"
            if isinstance(result, MemoryFile):
                result.close()
            del result
            if hands[0].state() != before:
                hands[0].close()
                hands[0] = Hands()
                before = _settled(hands[0], descriptors)
            continue
        if case.parameter == "reader" and callable(value):
            hands[0].mf.wait_for_reclaim()  # it was tried, and failed
            before = hands[0].state()
        after = hands[0].state()
        # The last is the number of threads: those of a file that was closed may only now be gone.
        assert after[:-1] == before[:-1], f"{name} was refused and left a change"
        assert after[-1] <= before[-1], f"{name} was refused and left a thread"


def _settled(hands: Hands, descriptors: int) -> tuple[Any, ...]:
    """Its state when the descriptors of a monitor have gone with the monitor's thread."""
    deadline = time.monotonic() + 1
    # time: a bound on what will not come; the caller asserts
    while (state := hands.state())[-2] > descriptors and time.monotonic() < deadline:
        time.sleep(0.001)  # time: it polls
    return state


@pytest.mark.parametrize("name", sorted(NO_ARGUMENTS))
def test_surplus_arguments_are_refused(hands: list[Hands], name: str) -> None:
    owner, _, method = name.rpartition(".")
    objects: dict[str, Any] = {
        "Allocation": hands[0].allocation,
        "MemoryFile": hands[0].mf,
        "Ledger": hands[0].ledger,
        "testing.SegmentSet": hands[0].set,
    }
    # Of other classes, methods are called as functions: one argument too many all the same.
    holder = objects.get(owner) or functools.reduce(
        getattr, filter(None, owner.split(".")), pgalloc
    )
    before = hands[0].state()
    with pytest.raises(TypeError):
        getattr(holder, method)(1, 2)
    assert hands[0].state() == before


def test_the_zoo_takes_no_memory(
    hands: list[Hands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64-bit edge input allocates nothing: the second round of it, the first makes caches."""
    monkeypatch.chdir(tmp_path)

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    grown = []
    for _ in range(2):
        values = list(zoo().values())
        before = resident()
        peak = before
        for case in CASES:
            if case.name == "MemoryFile":
                continue
            for value in values:
                with contextlib.suppress(Exception):
                    if not case.accepts(value):
                        case.call(hands[0], value)
            peak = max(peak, resident() if case.parameter == "length" else 0)
        grown.append(max(peak, resident()) - before)
    assert min(grown) < 4 << 20
