"""Every public callable against a zoo of bad values: typed errors, and nothing has changed.

A case is one parameter of one callable, with a predicate that says which values are fine there. All
others must be refused with a typed exception. Most of it is about row C1 and the general rule of
behaviour.md: "Nothing a caller passes can abort the interpreter".
"""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

import contextlib
import gc
import inspect
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import CHUNK, PAGE

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    ClosedError,
    DelayedEviction,
    Direction,
    EvictableRange,
    FileRange,
    Ledger,
    MemoryFile,
    MemoryKind,
    testing,
)
from pgalloc.testing import FaultPlan, ManualClock, SegmentSet


class UserError(Exception):
    """Raised by the special methods of hostile objects; it may pass through."""


def hostile(name: str, **methods: Callable[..., Any]) -> Any:
    return type(name, (), {f"__{method}__": body for method, body in methods.items()})()


def _raise(*args: object) -> Any:
    raise UserError


class EvictLater:
    """An evictable user, but for one special method."""

    def evict(self, range: EvictableRange) -> None:
        pass


class RaisingHash(EvictLater):
    def __hash__(self) -> int:
        raise UserError


class NonsenseHash(EvictLater):
    def __hash__(self) -> int:
        return "x"  # type: ignore[return-value]


class RaisingEvict:
    @property
    def evict(self) -> None:
        raise UserError


class Fileno:
    def __init__(self, result: Any) -> None:
        self.result = result

    def fileno(self) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self if self.result == "self" else self.result


class Hands:
    """What the zoo is let loose on."""

    def __init__(self) -> None:
        self.mf = MemoryFile(capacity=4 * CHUNK, delayed_eviction=DelayedEviction.MANUAL)
        self.range = self.mf.allocate_range(4 * PAGE)
        self.mf.map_range(self.range)[:PAGE] = b"x" * PAGE
        self.allocation = self.mf.allocate(4 * PAGE)
        self.ledger = Ledger()
        self.ledger.inc(5 * PAGE, MemoryKind.TMPFS, 3)
        self.set = SegmentSet()
        self.set.insert(PAGE, 3 * PAGE, 1)

    def state(self) -> tuple[Any, ...]:
        return (
            self.mf.segments(),
            self.mf.usage(),
            self.mf.total_size,
            self.mf.stats(),
            self.mf._evictables.empty(),
            self.mf.is_savable,
            self.ledger._snapshot(),
            self.set.segments(),
            pgalloc.memory_accounting()._snapshot(),
            self.allocation.released,
            testing.prefault_methods(),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        )

    def close(self) -> None:
        testing.verify(self.mf)
        self.mf.close()


def zoo() -> dict[str, Any]:
    """Fresh values each time: some of them remember."""
    closed = MemoryFile(capacity=CHUNK)
    released = closed.allocate(PAGE)
    released.release()
    closed.close()
    closed_file = open(os.devnull, "rb")  # noqa: SIM115
    closed_file.close()
    integers = [0, 1, -1, 7, PAGE, 2**31, 2**32, 2**62, 2**63 - PAGE, 2**63, 2**64 - 1, 2**64]
    values: dict[str, Any] = {str(value): value for value in integers}
    values |= {
        "2**1100": 2**1100,
        "True": True,
        "False": False,
        "0.0": 0.0,
        "1.0": 1.0,
        "1.5": 1.5,
        "nan": math.nan,
        "inf": math.inf,
        "complex": 1j,
        "None": None,
        "empty str": "",
        "str": "4096",
        "access": "rw",
        "nul str": "a\0b",
        "surrogate": "\udcff",
        "long str": "x" * 100_000,
        "empty bytes": b"",
        "bytes": b"4096",
        "bytearray": bytearray(8),
        "empty list": [],
        "list": [1],
        "list of float": [1.5],
        "list of inf": [math.inf],
        "list of str": ["1"],
        "list of bool": [True],
        "dict": {1: 2},
        "tuple": (0, PAGE),
        "range": range(2),
        "object": object(),
        "type": int,
        "function": len,
        "MemoryFile type": MemoryFile,
        "closed file": closed_file,
        "closed MemoryFile": closed,
        "released Allocation": released,
        "uninitialised MemoryFile": MemoryFile.__new__(MemoryFile),
        "uninitialised SegmentSet": SegmentSet.__new__(SegmentSet),
        "index raises": hostile("IndexRaises", index=_raise, int=_raise, float=_raise),
        "index is str": hostile("IndexIsStr", index=lambda self: "x", int=lambda self: "x"),
        "index is huge": hostile("IndexIsHuge", index=lambda self: 2**70),
        "index is page": hostile("IndexIsPage", index=lambda self: PAGE),
        "bool raises": hostile("BoolRaises", bool=_raise, len=_raise, iter=_raise),
        "eq raises": hostile("EqRaises", eq=_raise, hash=lambda self: 1),
        "eq is true": hostile("EqIsTrue", eq=lambda self, other: True, hash=lambda self: 1),
        "hash raises": RaisingHash(),
        "hash is str": NonsenseHash(),
        "evict raises": RaisingEvict(),
        "fspath raises": hostile("FspathRaises", fspath=_raise),
        "fspath is int": hostile("FspathIsInt", fspath=lambda self: 5),
        "fileno raises": Fileno(UserError()),
        "fileno is None": Fileno(None),
        "fileno is str": Fileno("4096"),
        "fileno is self": Fileno("self"),
        "fileno is huge": Fileno(2**70),
        "fileno is closed": Fileno(900_000),
        "no range": FileRange(0, 0),
        "misaligned": FileRange(1, PAGE + 1),
        "one byte": FileRange(0, 1),
        "unallocated": FileRange(2**40, 2**40 + PAGE),
        "partly allocated": FileRange(0, 100 * PAGE),
        "huge range": FileRange(0, 2**63 - PAGE),
        "beyond 2^63": FileRange(2**63, 2**64 - PAGE),
        "whole": FileRange(0, 2**64 - 1),
        "evictable": EvictableRange(0, 1),
        "empty evictable": EvictableRange(5, 5),
        "enum of another type": DelayedEviction.MANUAL,
    }
    return values


# --- which values are fine -----------------------------------------------------------------------

Accepts = Callable[[Any], bool]


def _int(value: Any) -> int | None:
    """The number a value stands for, if the API takes it as one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return PAGE if type(value).__name__ == "IndexIsPage" else None


def between(low: int, high: int, step: int = 1) -> Accepts:
    def accepts(value: Any) -> bool:
        number = _int(value)
        return number is not None and low <= number < high and number % step == 0

    return accepts


def nothing(value: Any) -> bool:
    return False


def anything(value: Any) -> bool:
    return True


def is_a(*types: type) -> Accepts:
    return lambda value: isinstance(value, types)


def either(*predicates: Accepts) -> Accepts:
    return lambda value: any(accepts(value) for accepts in predicates)


def none(value: Any) -> bool:
    return value is None


def integer(low: int, high: int) -> Accepts:
    """An int itself, without __index__."""
    return lambda value: (
        (type(value) is int and low <= value < high)
        or (isinstance(value, int) and not isinstance(value, bool) and low <= value < high)
    )


def number_of(low: int, high: int) -> Accepts:
    """As between(), where a bool passes for 0 or 1: tests and pure functions do not mind."""
    return lambda value: between(low, high)(int(value) if isinstance(value, bool) else value)


U64 = between(0, 2**64)
U32 = between(0, 2**32)
LENGTH = between(1, 2**64, PAGE)
SIZE = either(between(1, 2**63), none)
BOOL = is_a(bool)
NUMBER = either(is_a(float), lambda value: _int(value) is not None)
SECONDS = either(
    none,
    is_a(bool),
    lambda value: NUMBER(value) and (_int(value) or 0) < 2**1000 and value == value,
)


def finite(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value * 1e9) < 2**62
    number = int(value) if isinstance(value, bool) else _int(value)
    return number is not None and abs(number) < 2**62 // 10**9


def memcg_list(value: Any) -> bool:
    if not isinstance(value, (list, tuple, range, dict, bytearray)):
        return False
    return all(type(item) is int and 0 <= item < 2**32 for item in value)


def allocated(value: Any) -> bool:
    return False  # no range of the zoo is one of 8 allocated pages


def mappable(value: Any) -> bool:
    return isinstance(value, FileRange) and value.length > 0 and value.end <= CHUNK


def path(value: Any) -> bool:
    """Paths make files, in the directory that the test runs in."""
    if isinstance(value, str):
        return value not in ("", "a\0b") and len(value) < 1000
    return value == b"4096" or value is None


# --- the cases -----------------------------------------------------------------------------------


@dataclass
class Case:
    name: str  # the callable, as introspection names it
    parameter: str
    call: Callable[[Hands, Any], Any]
    accepts: Accepts


def _enter(manager: Any) -> Any:
    with manager:
        return None


def _cases() -> Iterator[Case]:
    for type_ in (FileRange, EvictableRange):
        name = type_.__name__
        one = type_(0, PAGE)
        yield Case(name, "start", lambda h, v, t=type_: t(v, 2**64 - 1), U64)
        yield Case(name, "end", lambda h, v, t=type_: t(0, v), U64)
        yield Case(f"{name}.contains", "offset", lambda h, v, o=one: o.contains(v), U64)
        yield Case(f"{name}.contains", "in", lambda h, v, o=one: v in o, U64)
        for method in ("overlaps", "intersect", "is_superset_of"):
            call = lambda h, v, o=one, m=method: getattr(o, m)(v)
            yield Case(f"{name}.{method}", "other", call, is_a(type_))
    for enum in (AllocationMode, DelayedEviction, Direction, MemoryKind):
        yield Case(
            enum.__name__, "value", lambda h, v, e=enum: e(v), lambda v: v in (0, 1, 2, 3, 4, 5)
        )

    yield Case("Allocation", "file", lambda h, v: Allocation(v, h.range), nothing)
    yield Case("Allocation", "range", lambda h, v: Allocation(h.mf, v), nothing)
    whole = (0, 4 * PAGE)
    yield Case(
        "Allocation.slice",
        "start",
        lambda h, v: h.allocation.slice(v, whole[1]),
        number_of(0, 3 * PAGE + 1),
    )
    yield Case(
        "Allocation.slice",
        "stop",
        lambda h, v: h.allocation.slice(0, v),
        number_of(PAGE, 4 * PAGE + 1),
    )
    yield Case("Allocation.view", "readonly", lambda h, v: h.allocation.view(readonly=v), anything)

    for name in ("Ledger.inc", "Ledger.dec"):
        method = name.split(".")[1]
        small = between(0, 5 * PAGE + 1) if method == "dec" else U64
        yield Case(
            name,
            "bytes",
            lambda h, v, m=method: getattr(h.ledger, m)(v, MemoryKind.TMPFS, 3),
            small,
        )
        kind = between(0, 6) if method == "inc" else between(3, 4)
        yield Case(name, "kind", lambda h, v, m=method: getattr(h.ledger, m)(1, v, 3), kind)
        memcg = U32 if method == "inc" else either(between(0, 1), between(3, 4))
        call = lambda h, v, m=method: getattr(h.ledger, m)(1, MemoryKind.TMPFS, v)
        yield Case(name, "memcg_id", call, memcg)
    tmpfs, system = MemoryKind.TMPFS, MemoryKind.SYSTEM
    move = "Ledger.move"
    yield Case(
        move, "bytes", lambda h, v: h.ledger.move(v, system, tmpfs, 3), between(0, 5 * PAGE + 1)
    )
    yield Case(move, "to", lambda h, v: h.ledger.move(1, v, tmpfs, 3), between(0, 6))
    yield Case(move, "from_", lambda h, v: h.ledger.move(1, system, v, 3), between(3, 4))
    memcg = either(between(0, 1), between(3, 4))
    yield Case(move, "memcg_id", lambda h, v: h.ledger.move(1, system, tmpfs, v), memcg)
    yield Case("Ledger.copy", "memcg_id", lambda h, v: h.ledger.copy(v), anything)  # K4
    yield Case("total_memory", "size", lambda h, v: pgalloc.total_memory(v, 1), number_of(0, 2**64))
    yield Case("total_memory", "used", lambda h, v: pgalloc.total_memory(1, v), number_of(0, 2**64))
    yield Case(
        "total_memory",
        "maximum",
        lambda h, v: pgalloc.total_memory(1, 1, maximum=v),
        number_of(0, 2**64),
    )
    yield Case("EvictableUser", "self", lambda h, v: pgalloc.EvictableUser(v), nothing)  # type: ignore[call-arg]

    options: dict[str, Accepts] = {
        "capacity": SIZE,
        "max_allocatable_bytes": SIZE,
        "delayed_eviction": between(0, 4),
        "use_host_memcg_pressure": lambda value: value is False or value is True,
        "decommit_on_destroy": BOOL,
        "manual_zeroing": BOOL,
        "disable_ima_workaround": BOOL,
        "disk_backed": BOOL,
        "restore_id": is_a(str),
    }
    for option, accepts in options.items():
        yield Case("MemoryFile", option, lambda h, v, o=option: MemoryFile(**{o: v}), accepts)
    yield Case("MemoryFile", "backing", _make_from, path)

    for name in ("MemoryFile.allocate", "MemoryFile.allocate_range"):
        method = name.split(".")[1]
        keywords: dict[str, Accepts] = {
            "kind": integer(0, 5),
            "direction": integer(0, 2),
            "memcg_id": U32,
            "mode": integer(0, 3),
            "reader": either(none, callable),
        }
        yield Case(name, "length", lambda h, v, m=method: getattr(h.mf, m)(v), LENGTH)
        for keyword, accepts in keywords.items():
            call = lambda h, v, m=method, k=keyword: getattr(h.mf, m)(PAGE, **{k: v})
            yield Case(name, keyword, call, accepts)
    for method in ("inc_ref", "dec_ref", "has_unique_ref", "decommit"):
        yield Case(
            f"MemoryFile.{method}", "range", lambda h, v, m=method: getattr(h.mf, m)(v), allocated
        )
    yield Case("MemoryFile.inc_ref", "memcg_id", lambda h, v: h.mf.inc_ref(h.range, v), U32)
    yield Case("MemoryFile.map_range", "range", lambda h, v: h.mf.map_range(v), mappable)
    access = "MemoryFile.map_range"
    yield Case(access, "access", lambda h, v: h.mf.map_range(h.range, v), lambda v: v == "rw")
    for method in ("mark_evictable", "mark_unevictable"):
        name = f"MemoryFile.{method}"
        user = lambda h, v, m=method: getattr(h.mf, m)(v, EvictableRange(0, 1))
        yield Case(name, "user", user, nothing if method == "mark_evictable" else anything)
        call = lambda h, v, m=method: getattr(h.mf, m)(EvictLater(), v)
        fine = lambda v, m=method: (
            isinstance(v, EvictableRange) and (v.length > 0 or m == "mark_unevictable")
        )
        yield Case(name, "range", call, fine)
    name = "MemoryFile.mark_all_unevictable"
    yield Case(name, "user", lambda h, v: h.mf.mark_all_unevictable(v), anything)
    for method in ("wait_for_evictions", "wait_for_reclaim"):
        call = lambda h, v, m=method: getattr(h.mf, m)(v)
        yield Case(f"MemoryFile.{method}", "timeout", call, SECONDS)
    ids = either(none, memcg_list)
    yield Case("MemoryFile.update_usage", "memcg_ids", lambda h, v: h.mf.update_usage(v), ids)
    yield Case("MemoryFile.usage", "memcg_id", lambda h, v: h.mf.usage(v), either(none, U32))

    name = "testing.FaultPlan"
    names = testing.syscall_names()
    yield Case(name, "name", lambda h, v: _enter(FaultPlan(v)), lambda v: v in names)
    errno = number_of(-(2**31), 2**31)
    yield Case(name, "errno", lambda h, v: _enter(FaultPlan("unlink", v)), errno)
    yield Case(
        name, "first", lambda h, v: _enter(FaultPlan("unlink", first=v)), number_of(0, 2**64)
    )
    yield Case(
        name, "times", lambda h, v: _enter(FaultPlan("unlink", times=v)), number_of(0, 2**64)
    )
    name = "testing.ManualClock"
    opened = lambda v: isinstance(v, MemoryFile) and hasattr(v, "_evictor")
    yield Case(name, "memory_file", lambda h, v: _enter(ManualClock(v)), opened)
    yield Case(name, "tick_s", lambda h, v: _enter(ManualClock(h.mf, tick_s=v)), finite)
    yield Case("testing.ManualClock.advance", "seconds", _advance, finite)
    for helper in ("bookkeeping_bytes", "verify"):
        call = lambda h, v, f=helper: getattr(testing, f)(v)
        yield Case(f"testing.{helper}", "memory_file", call, opened)
    for helper in ("pause_reclaimer", "reclaim_log"):
        call = lambda h, v, f=helper: _enter(getattr(testing, f)(v))
        yield Case(f"testing.{helper}", "memory_file", call, opened)

    name = "testing.find_available_range"
    arguments: list[Any] = [[(0, PAGE, 1)], CHUNK, PAGE, PAGE, Direction.BOTTOM_UP]
    fits: dict[str, Accepts] = {
        "segments": lambda v: v in ([], {}) or (isinstance(v, (str, bytes, bytearray)) and not v),
        "file_size": number_of(0, 2**63),
        "length": number_of(1, 2**64),
        "alignment": lambda v: (
            v is True or ((n := _int(v)) is not None and 0 < n < 2**64 and n & (n - 1) == 0)
        ),
        "direction": lambda v: v in (0, 1),
    }
    for at, (parameter, accepts) in enumerate(fits.items()):

        def find(h: Hands, v: Any, at: int = at) -> Any:
            return testing.find_available_range(
                *[v if i == at else a for i, a in enumerate(arguments)]
            )

        yield Case(name, parameter, find, accepts)

    i64 = number_of(-(2**63), 2**63)
    any_key = number_of(0, 2**64)
    power = fits["alignment"]
    keys: dict[str, tuple[tuple[Any, ...], dict[int, Accepts]]] = {
        "insert": (
            (8 * PAGE, 9 * PAGE, 1),
            {0: nothing, 1: number_of(8 * PAGE + 1, 2**64), 2: i64},
        ),
        "remove": ((0, 5), {0: number_of(0, 5), 1: number_of(1, 2**64)}),
        "add": ((0, 2**64 - 1, 0), {0: number_of(0, 2**64 - 1), 1: number_of(1, 2**64), 2: i64}),
        "split": ((0,), {0: any_key}),
        "find": ((0,), {0: any_key}),
        "find_gap": ((0,), {0: any_key}),
        "lower_bound": ((0,), {0: any_key}),
        "upper_bound": ((0,), {0: any_key}),
        "first_large_enough_gap": ((1, 1), {0: number_of(1, 2**64), 1: power}),
        "last_large_enough_gap": ((1, 1), {0: number_of(1, 2**64), 1: power}),
        "next_large_enough_gap": ((1, 1, 1), {0: any_key, 1: number_of(1, 2**64), 2: power}),
        "prev_large_enough_gap": ((1, 1, 1), {0: any_key, 1: number_of(1, 2**64), 2: power}),
    }
    for method, (usual, predicates) in keys.items():
        for at, accepts in predicates.items():

            def use(h: Hands, v: Any, at: int = at, m: str = method, usual: Any = usual) -> Any:
                return getattr(h.set, m)(*[v if i == at else a for i, a in enumerate(usual)])

            yield Case(f"testing.SegmentSet.{method}", str(at), use, accepts)


def _make_from(h: Hands, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        value = 900_000  # a descriptor that is really open would be adopted, and emptied
    return MemoryFile(value)


def _advance(h: Hands, value: Any) -> Any:
    with ManualClock(h.mf) as clock:
        clock.advance(value)


CASES = list(_cases())

REFUSALS = (TypeError, ValueError, MemoryError, OSError, BufferError, pgalloc.Error, UserError)
# Typed as they are in Python, these say that nobody thought of the value.
NOT_THOUGHT_OF = (OverflowError, RecursionError, SystemError, AssertionError)

# They take no argument of the caller, or they are plain data.
NO_ARGUMENTS = {
    "memory_accounting",
    "Allocation.clone",
    "Allocation.decommit",
    "Allocation.release",
    "Ledger.memcg_ids",
    "Ledger.total",
    "MemoryFile.close",
    "MemoryFile.fileno",
    "MemoryFile.mark_savable",
    "MemoryFile.segments",
    "MemoryFile.start_evictions",
    "MemoryFile.stats",
    "MemoryFile.total_usage",
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
}
PLAIN_DATA = {"MemoryFileStats", "Segment"}


def _public_callables() -> set[str]:
    found = set()
    for prefix, module in (("", pgalloc), ("testing.", testing)):
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            if isinstance(value, type) and issubclass(value, BaseException):
                continue
            found.add(prefix + name)
            if isinstance(value, type) and name not in PLAIN_DATA and value.__module__ != "enum":
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
        and not name.startswith(("MemoryKind", "DelayedEviction"))
    }
    assert not missing, f"add cases for {sorted(missing)}"
    assert {case.name for case in CASES} | NO_ARGUMENTS <= _public_callables()


@pytest.mark.parametrize("module", [pgalloc, testing], ids=["pgalloc", "testing"])
def test_every_public_name_is_exported_once_and_documented(module: ModuleType) -> None:
    names = module.__all__
    assert len(names) == len(set(names))
    assert module.__doc__
    for name in names:
        value = getattr(module, name)
        if isinstance(value, int) and not isinstance(value, type):
            continue  # constants
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
            hands[0].close()
            hands[0] = Hands()
            before = hands[0].state()
            continue
        if case.parameter == "reader" and callable(value):
            hands[0].mf.wait_for_reclaim()  # it was tried, and failed
            before = hands[0].state()
        assert hands[0].state() == before, f"{name} was refused and left a change"


@pytest.mark.parametrize("name", sorted(NO_ARGUMENTS))
def test_surplus_arguments_are_refused(hands: list[Hands], name: str) -> None:
    owner, _, method = name.rpartition(".")
    holders: dict[str, Any] = {
        "": pgalloc,
        "testing": testing,
        "Allocation": hands[0].allocation,
        "MemoryFile": hands[0].mf,
        "Ledger": hands[0].ledger,
        "testing.SegmentSet": hands[0].set,
    }
    before = hands[0].state()
    with pytest.raises(TypeError):
        getattr(holders[owner], method)(1, 2)
    assert hands[0].state() == before


def test_the_zoo_takes_no_memory(
    hands: list[Hands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Must show: 64-bit edge input allocates nothing. The second round of it, to be exact."""
    monkeypatch.chdir(tmp_path)

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    grown = []
    for _ in range(3):
        before = resident()
        peak = before
        for case in CASES:
            if case.name == "MemoryFile":
                continue
            for value in zoo().values():
                with contextlib.suppress(Exception):
                    if not case.accepts(value):
                        case.call(hands[0], value)
            peak = max(peak, resident() if case.parameter == "length" else 0)
        grown.append(max(peak, resident()) - before)
    assert min(grown) < 4 << 20


# --- values that act -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda mf, value: mf.allocate(value),
        lambda mf, value: mf.allocate_range(value),
        lambda mf, value: mf.allocate_range(PAGE, memcg_id=value),
        lambda mf, value: mf.inc_ref(FileRange(0, PAGE), value),
    ],
)
def test_an_index_that_closes_the_file(call: Callable[[MemoryFile, Any], Any]) -> None:
    mf = MemoryFile(capacity=CHUNK)
    mf.allocate_range(PAGE)

    class Closer:
        def __index__(self) -> int:
            mf.close()
            return PAGE

    with pytest.raises(ClosedError):
        call(mf, Closer())
    assert mf.closed


@pytest.mark.parametrize("ending", ["close", "release", "nested"])
def test_readers_that_turn_on_the_file(ending: str) -> None:
    """Row B17: the buffer stays good whatever the reader does."""
    mf = MemoryFile(capacity=CHUNK)

    def reader(buffer: memoryview) -> int:
        if ending == "close":
            mf.close()
        elif ending == "release":
            buffer.release()
            return PAGE
        else:
            mf.allocate(PAGE, reader=lambda rest: len(rest)).release()
        buffer[:4] = b"good"
        return len(buffer)

    try:
        mf.allocate(2 * PAGE, reader=reader)
    except (pgalloc.Error, ValueError):
        assert ending != "nested"
    mf.close()
    assert sum(mf.usage().values()) == 0


def test_g1_users_that_are_equal_only_by_raising(hands: list[Hands]) -> None:
    class Odd(EvictLater):
        def __init__(self) -> None:
            self.asked = 0

        def evict(self, range: EvictableRange) -> None:
            self.asked += 1

        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            raise UserError

    mf, first, second = hands[0].mf, Odd(), Odd()
    mf.mark_evictable(first, EvictableRange(0, 1))
    for call in (mf.mark_evictable, mf.mark_unevictable):
        with pytest.raises(UserError):
            call(second, EvictableRange(0, 1))
    mf.start_evictions()
    assert mf.wait_for_evictions(10)
    assert (first.asked, second.asked) == (1, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_g5_a_user_whose_hash_breaks_later_stops_nobody(hands: list[Hands]) -> None:
    class Fickle(EvictLater):
        broken = False

        def __hash__(self) -> int:
            if self.broken:
                raise UserError
            return 7

        def evict(self, range: EvictableRange) -> None:
            self.broken = True

    class Counting(EvictLater):
        asked = 0

        def evict(self, range: EvictableRange) -> None:
            self.asked += 1

    mf, fickle, good = hands[0].mf, Fickle(), Counting()
    for round_ in range(3):
        if not fickle.broken:
            mf.mark_evictable(fickle, EvictableRange(0, 1))
        mf.mark_evictable(good, EvictableRange(0, 1))
        mf.start_evictions()
        assert mf.wait_for_evictions(10)
        assert good.asked == round_ + 1


def test_constructing_twice_leaks_nothing(hands: list[Hands]) -> None:
    """MemoryFile.__init__ on a MemoryFile: refused, or a new start; never two files."""
    mf = MemoryFile(capacity=CHUNK)
    with mf.allocate(PAGE) as a:
        a.view()[:4] = b"kept"
        try:
            mf.__init__(capacity=CHUNK)
        except (TypeError, RuntimeError):
            assert not mf.closed
        assert bytes(a.view()[:4]) == b"kept"
    mf.close()  # the leak guard counts descriptors and threads


def test_objects_without_their_constructor_are_refused() -> None:
    mf = MemoryFile.__new__(MemoryFile)
    members = [name for name in dir(MemoryFile) if not name.startswith("__")]
    for name in members:
        try:
            member = getattr(mf, name)
            if callable(member) and name not in ("restore",):
                member(FileRange(0, PAGE))
        except (TypeError, ValueError, RuntimeError, AttributeError, pgalloc.Error):
            pass
    for type_ in (SegmentSet, pgalloc._core.Ledger):
        empty = type_.__new__(type_)
        for name in dir(type_):
            if name.startswith("__") and name != "__len__":
                continue
            with pytest.raises(TypeError):
                getattr(empty, name)()
    with pytest.raises((TypeError, RuntimeError)):
        Allocation(mf, FileRange(0, PAGE))


@pytest.mark.slow
def test_the_same_in_development_mode(tmp_path: Path) -> None:
    """-X dev: debug hooks of the memory allocators, and warnings for what is left open."""
    root = Path(__file__).parents[2]
    options = (
        "-X dev -m pytest -q -x -p no:cacheprovider -W ignore::ResourceWarning "
        f"-c {root / 'pyproject.toml'} --rootdir {root}"
    )
    done = subprocess.run(
        [sys.executable, *options.split(), "-k", "not development_mode", __file__],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=tmp_path,  # not the source tree: this is about the installed package
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
