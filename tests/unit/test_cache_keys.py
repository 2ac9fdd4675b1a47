"""What a key is, for reads and writes alike; keys(), items() and repr(); expire; values."""

from __future__ import annotations

import ctypes
import datetime
import decimal
import fractions
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PAGE
from no_keys import NO_KEYS

from pgalloc import Cache, MemoryFile, OptionError, _core, testing


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as made:
        yield made
        testing.verify_cache(made)


class Meddler:
    """Equals every key, and says so by its own code."""

    def __init__(self, cache: Cache, key: Any) -> None:
        self.cache, self.key, self.asked = cache, key, 0

    def __hash__(self) -> int:
        self.asked += 1
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        self.asked += 1
        thread = threading.Thread(target=self.cache.clear)
        thread.start()
        thread.join(10)
        return True


KEYS: list[Any] = [1, 0, -1, "a", "1", b"a", (1, 2), ("a", 1), (), ((1, 1),)]


@pytest.mark.parametrize("value", NO_KEYS, ids=lambda value: type(value).__name__)
def test_what_is_no_key_is_never_there(cache: Cache, value: Any) -> None:
    """Whatever equals it: it is not found, and not stored."""
    equal: list[Any] = [1, 0, "a", b"a", (1, 2), (1, 1), ((1, 1),), ("a", ("a",))]
    for key in equal:
        cache[key] = b"v"
    before = cache.stats()
    assert value not in cache
    assert value not in cache.keys()  # noqa: SIM118
    assert (value, b"v") not in cache.items()
    assert (cache.stats().hits, cache.stats().misses) == (before.hits, before.misses)
    assert cache.get(value) is None
    assert cache.get(value, 7) == cache.pop(value, 7) == cache.get_bytes(value, 7) == 7
    writes: list[Any] = [
        *(lambda: cache.put(value, b"x"), lambda: cache.__setitem__(value, b"x")),
        *(lambda: cache.setdefault(value, b"x"), lambda: cache.update([(value, b"x")])),
        *(lambda: cache[value], lambda: cache.__delitem__(value), lambda: cache.pop(value)),
        lambda: cache.put("k", b"x", tag=("tag", value)),
    ]
    for write in writes:
        with pytest.raises(TypeError, match="a key is"):
            write()
    if value is not None:  # None is no tag
        with pytest.raises(TypeError, match="a tag is like a key"):
            cache.put("k", b"x", tag=value)
    assert len(cache) == len(equal)
    assert (cache.stats().hits, cache.stats().misses) == (before.hits, before.misses + 5)


def test_no_code_of_a_key_runs(cache: Cache) -> None:
    cache[1] = b"v"
    meddler: Any = Meddler(cache, 1)
    nested: Any = ("a", meddler)
    for key in (meddler, nested):
        assert cache.get(key) is None
        assert key not in cache
        assert cache.pop(key, None) is None
        with pytest.raises(TypeError):
            cache.put(key, b"x")
    assert meddler.asked == 0
    assert list(cache) == [1]


def test_looking_at_items_counts_nothing(cache: Cache) -> None:
    for key in range(5):
        cache[key] = bytes([key]) * (100 if key % 2 else 5000)
    assert {key: view[0] for key, view in cache.items()} == {n: n for n in range(5)}
    assert [view[0] for view in cache.values()] == list(range(5))
    assert (1, b"\1" * 100) in cache.items()
    assert (1, b"other") not in cache.items()
    assert ("absent", b"") not in cache.items()
    for item in (None, 1, (), (1,), [1, b"\1" * 100], "ab"):
        assert item not in cache.items()
    assert cache.keys() & {1, 2, 1.5, "a"} == {1, 2}
    assert b"\0" * 5000 in cache.values()
    assert (cache.stats().hits, cache.stats().misses) == (0, 0)


class MyCache(Cache):
    pass


def test_repr_tells_the_present_and_the_class() -> None:
    with MyCache() as cache, testing.ManualPressure() as pressure:
        for key in range(10):
            cache[key] = bytes(PAGE)
        assert repr(cache).startswith(f"<MyCache of 10 values, {10 * PAGE} bytes, ")
        pressure.demand(4 * PAGE)
        assert repr(cache).startswith(f"<MyCache of 6 values, {6 * PAGE} bytes, ")
        cache.put("k", b"", expire=1e-9)
        assert "of 6 values" in repr(cache)
    assert repr(cache) == "<MyCache closed>"
    file = MemoryFile()
    cache = MyCache(file=file)
    file.close()
    assert repr(cache) == "<MyCache closed>"


# --- expire --------------------------------------------------------------------------------------

SECONDS: list[Any] = [1, 1.5, fractions.Fraction(3, 2), decimal.Decimal("1.5"), np.float32(1.5)]
SECONDS += [np.float64(1.5), np.int16(1), np.longdouble(1.5), datetime.timedelta(seconds=1.5)]


@pytest.mark.parametrize("expire", SECONDS, ids=lambda value: type(value).__name__)
def test_expire_takes_every_real_number(cache: Cache, expire: Any) -> None:
    seconds = expire.total_seconds() if isinstance(expire, datetime.timedelta) else float(expire)
    with testing.ManualClock(cache.file) as clock:
        cache.put("k", b"v", expire=expire)
        clock.advance(seconds - 1e-6)
        assert "k" in cache
        clock.advance(2e-6)
        assert "k" not in cache


EVER: list[Any] = [float("inf"), 10**400, fractions.Fraction(10**400), decimal.Decimal("1e999")]
EVER += [decimal.Decimal("inf"), np.float64("inf"), datetime.timedelta.max, None]
NEVER: list[Any] = [0, -1, 0.0, -0.0, float("nan"), float("-inf"), -(10**400)]
NEVER += [fractions.Fraction(-1, 3), fractions.Fraction(-(10**400)), datetime.timedelta()]
NEVER += [decimal.Decimal(0), decimal.Decimal("NaN"), decimal.Decimal("sNaN"), np.float32("nan")]
NO_SECONDS: list[Any] = [True, np.bool_(True), "1", b"1", 1j, np.complex128(1), [1], object()]
NO_SECONDS += [np.timedelta64(1, "s"), datetime.time(1), np.array([1.0])]


def test_expire_at_its_limits(cache: Cache) -> None:
    for expire in EVER:
        cache.put("k", b"v", expire=expire)
        with testing.ManualClock(cache.file) as clock:
            clock.advance(1e9)
            assert "k" in cache
    for expire in NEVER:
        with pytest.raises(OptionError, match="more than 0"):
            cache.put("k", b"new", expire=expire)
    for expire in NO_SECONDS:
        with pytest.raises(TypeError, match="seconds or a timedelta"):
            cache.put("k", b"new", expire=expire)
    assert bytes(cache["k"]) == b"v"


# --- values --------------------------------------------------------------------------------------


class Pointer(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("there", ctypes.py_object))


def test_references_are_no_bytes(cache: Cache) -> None:
    cache["k"] = b"old"
    objects: list[Any] = [
        np.array([object()]),
        np.zeros(3, [("a", "i4"), ("b", "O")]),
        np.zeros(3, [("a", [("b", "O", 2)])]),
        np.zeros((2, 0), "O"),
        ctypes.py_object(cache),
        Pointer(),
        memoryview(np.array([None])),
    ]
    for value in objects:
        for use in (cache.put, cache.setdefault):
            with pytest.raises(TypeError, match="objects"):
                use("k2", value)
        with pytest.raises(TypeError, match="objects"):
            cache["k"] = value
    cache["names"] = np.zeros(3, [("O", "i4"), ("xOx", "f8")])
    assert len(cache["names"]) == 36
    assert bytes(cache["k"]) == b"old"


@pytest.mark.parametrize("value", ["text", 7, None, [b"x"], object()])
def test_a_message_for_what_is_no_bytes(cache: Cache, value: Any) -> None:
    for use in (cache.put, cache.setdefault):
        with pytest.raises(TypeError, match=rf"bytes.*{type(value).__name__}"):
            use("k", value)
    assert len(cache) == 0


def test_get_bytes(cache: Cache) -> None:
    for data in (b"", b"abc", b"x" * 9000):
        cache["k"] = data
        assert type(cache.get_bytes("k")) is bytes
        assert cache.get_bytes("k") == data
    assert cache.get_bytes("absent") is None
    assert cache.get_bytes("absent", "default") == "default"
    assert (cache.stats().hits, cache.stats().misses) == (6, 2)


# --- callbacks that raise ------------------------------------------------------------------------


class Stopped(BaseException):
    pass


def test_a_callback_that_raises_costs_no_value() -> None:
    """pop() and popitem() remove nothing that they do not return."""
    for use in (lambda c: c.pop(9), lambda c: c.popitem()[1], lambda c: c.pop(9, None)):

        def stop(key: Any) -> None:
            raise Stopped

        with Cache(on_discard=stop, policy="lru") as cache:
            for key in range(10):
                cache[key] = bytes(PAGE)
            with testing.ManualPressure() as pressure:
                pressure.demand(2 * PAGE)
            for left in (8, 8):
                with pytest.raises(Stopped):
                    use(cache)  # type: ignore[no-untyped-call]
                assert _core.cache_stats(cache._store)["entries"] == left
            assert len(use(cache)) == PAGE  # type: ignore[no-untyped-call]
            assert len(cache) == 7
            testing.verify_cache(cache)
