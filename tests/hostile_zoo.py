"""A zoo of bad values, what it is let loose on, and predicates for the values that are fine."""

# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from typing import Any

from conftest import CHUNK, PAGE
from image_model import Image, Usage, build, extents_of

import pgalloc
from pgalloc import (
    DelayedEviction,
    EvictableRange,
    FileRange,
    Ledger,
    MemoryFile,
    MemoryKind,
    testing,
)
from pgalloc.testing import SegmentSet


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


IMAGE = build(
    Image(PAGE, CHUNK, [Usage(0, 4 * PAGE)], extents=extents_of({PAGE: b"i" * PAGE}, PAGE))
)


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
        self.mf.save_hook("4096", save=lambda: b"kept")
        # From a stream, which needs no threads.
        self.restored = MemoryFile.restore(io.BytesIO(IMAGE), capacity=4 * CHUNK)

    def state(self) -> tuple[Any, ...]:
        return (
            self.mf.segments(),
            self.mf.usage(),
            self.mf.total_size,
            self.mf.stats(),
            self.mf._evictables.empty(),
            self.mf.is_savable,
            list(self.mf._hooks._hooks),
            self.mf.load_progress(),
            self.restored.segments(),
            self.restored.unadopted(),
            self.ledger._snapshot(),
            self.set.segments(),
            pgalloc.memory_accounting()._snapshot(),
            self.allocation.released,
            testing.prefault_methods(),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        )

    def close(self) -> None:
        for mf in (self.mf, self.restored):
            testing.verify(mf)
            mf.close()


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


def int_of(value: Any) -> int | None:
    """The number a value stands for, if the API takes it as one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return PAGE if type(value).__name__ == "IndexIsPage" else None


def between(low: int, high: int, step: int = 1) -> Accepts:
    def accepts(value: Any) -> bool:
        number = int_of(value)
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
SIZE_IN_BYTES = either(between(1, 2**63), none)
BOOL = is_a(bool)
NUMBER = either(is_a(float), lambda value: int_of(value) is not None)
SECONDS = either(
    none,
    is_a(bool),
    lambda value: NUMBER(value) and (int_of(value) or 0) < 2**1000 and value == value,
)


def finite(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value * 1e9) < 2**62
    number = int(value) if isinstance(value, bool) else int_of(value)
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
