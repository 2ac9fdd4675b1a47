"""Cases of bad input: one parameter of one callable, and the values that are fine there."""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conftest import CHUNK, PAGE
from hostile_zoo import (
    BOOL,
    LENGTH,
    SECONDS,
    SIZE_IN_BYTES,
    U32,
    U64,
    Accepts,
    EvictLater,
    Hands,
    allocated,
    anything,
    between,
    either,
    finite,
    int_of,
    integer,
    is_a,
    mappable,
    memcg_list,
    none,
    nothing,
    number_of,
    path,
)

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    DelayedEviction,
    Direction,
    EvictableRange,
    FileRange,
    MemoryFile,
    MemoryKind,
    testing,
)
from pgalloc.testing import FaultPlan, ManualClock


@dataclass
class Case:
    name: str  # the callable, as introspection names it
    parameter: str
    call: Callable[[Hands, Any], Any]
    accepts: Accepts


def enter(manager: Any) -> Any:
    with manager:
        return None


def cases_of_the_package() -> Iterator[Case]:
    """All but those of snapshots."""
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
        "capacity": SIZE_IN_BYTES,
        "max_allocatable_bytes": SIZE_IN_BYTES,
        "delayed_eviction": between(0, 4),
        "use_host_memcg_pressure": lambda value: value is False or value is True,
        "decommit_on_destroy": BOOL,
        "manual_zeroing": BOOL,
        "disable_ima_workaround": BOOL,
        "disk_backed": BOOL,
        "accounting": BOOL,
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
    for method in ("inc_ref", "dec_ref", "has_unique_ref", "first_shared_range", "decommit"):
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


def cases_of_testing() -> Iterator[Case]:
    """pgalloc.testing."""
    name = "testing.FaultPlan"
    names = testing.syscall_names()
    yield Case(name, "name", lambda h, v: enter(FaultPlan(v)), lambda v: v in names)
    errno = number_of(-(2**31), 2**31)
    yield Case(name, "errno", lambda h, v: enter(FaultPlan("unlink", v)), errno)
    yield Case(name, "first", lambda h, v: enter(FaultPlan("unlink", first=v)), number_of(0, 2**64))
    yield Case(name, "times", lambda h, v: enter(FaultPlan("unlink", times=v)), number_of(0, 2**64))
    name = "testing.ManualClock"
    opened = lambda v: isinstance(v, MemoryFile) and hasattr(v, "_evictor")
    yield Case(name, "memory_file", lambda h, v: enter(ManualClock(v)), opened)
    yield Case(name, "tick_s", lambda h, v: enter(ManualClock(h.mf, tick_s=v)), finite)
    yield Case("testing.ManualClock.advance", "seconds", _advance, finite)
    for helper in ("bookkeeping_bytes", "verify"):
        call = lambda h, v, f=helper: getattr(testing, f)(v)
        yield Case(f"testing.{helper}", "memory_file", call, opened)
    for helper in ("pause_reclaimer", "reclaim_log"):
        call = lambda h, v, f=helper: enter(getattr(testing, f)(v))
        yield Case(f"testing.{helper}", "memory_file", call, opened)

    name = "testing.find_available_range"
    arguments: list[Any] = [[(0, PAGE, 1)], CHUNK, PAGE, PAGE, Direction.BOTTOM_UP]
    fits: dict[str, Accepts] = {
        "segments": lambda v: v in ([], {}) or (isinstance(v, (str, bytes, bytearray)) and not v),
        "file_size": number_of(0, 2**63),
        "length": number_of(1, 2**64),
        "alignment": lambda v: (
            v is True or ((n := int_of(v)) is not None and 0 < n < 2**64 and n & (n - 1) == 0)
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
