"""Cache as a mapping: keys, values, views, sizes, tags, expiry, figures."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PAGE

import pgalloc
from pgalloc import Cache, ClosedError, MemoryFile, Policy, testing

LENGTHS = [0, 1, 7, 8, 9, 200, 511, 512, 513, 816, 817, 2040, 2041, 3071, 3072, 3073]
LENGTHS += [4095, 4096, 4097, 8192, 8193, 65535, 65536, 65537]
KEYS: list[Any] = ["", "a", "\udcff", b"", b"a", 0, -1, 2**80, (), ("a", 1), (b"a", ("a", (0,)))]
POLICIES = list(Policy)


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as made:
        yield made
        if not made.closed:
            testing.verify_cache(made)


@pytest.fixture
def clock(cache: Cache) -> Iterator[testing.ManualClock]:
    with testing.ManualClock(cache.file) as made:
        yield made


def contents(cache: Cache) -> dict[Any, bytes]:
    return {key: bytes(view) for key, view in cache.items()}


# --- a mapping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_it_does_what_a_dict_does(policy: Policy, seed: int) -> None:
    rng = random.Random(seed)
    model: dict[Any, bytes] = {}
    held: list[tuple[memoryview, bytes]] = []
    with Cache(policy=policy) as cache:
        for step in range(1500):
            key = rng.choice(KEYS) if rng.random() < 0.5 else rng.randrange(40)
            data = rng.randbytes(rng.choice(LENGTHS))
            act = rng.randrange(20)
            if act < 8:
                cache[key] = model[key] = data
            elif act < 11:
                view = cache.get(key)
                assert (None if view is None else bytes(view)) == model.get(key)
                if view is not None and rng.random() < 0.5:
                    held.append((view, model[key]))
            elif act == 11:
                gone = cache.pop(key, None)
                assert (None if gone is None else bytes(gone)) == model.pop(key, None)
            elif act == 12:
                assert bytes(cache.setdefault(key, data)) == model.setdefault(key, data)
            elif act == 13:
                if key in model:
                    del cache[key], model[key]
                else:
                    with pytest.raises(KeyError):
                        del cache[key]
            elif act == 14 and model and rng.random() < 0.3:
                key, view = cache.popitem()
                assert bytes(view) == model.pop(key)
            elif act == 15 and rng.random() < 0.03:
                cache.clear(), model.clear()
            elif act == 16:
                cache.update({key: data})
                model.update({key: data})
            elif act == 17 and held:
                held.pop(rng.randrange(len(held)))
            assert (key in cache) == (key in model)
            assert len(cache) == len(model)
            if step % 50 == 0:
                assert contents(cache) == model
                assert set(cache) == set(model) == set(cache.keys())
                assert all(bytes(view) == expected for view, expected in held)
                testing.verify_cache(cache)
        assert contents(cache) == model
    assert all(bytes(view) == expected for view, expected in held), "after close(), too"
    held.clear()


def test_a_key_that_is_absent(cache: Cache) -> None:
    for ask in (cache.__getitem__, cache.__delitem__, cache.pop):
        with pytest.raises(KeyError, match="absent"):
            ask("absent")
    with pytest.raises(KeyError):
        cache.popitem()
    assert cache.get("absent", 7) == cache.pop("absent", 7) == 7


def test_caches_are_themselves(cache: Cache) -> None:
    with Cache() as other:
        assert cache != other
        assert len({cache, other}) == 2
    assert "0 values" in repr(cache)
    assert repr(other) == "<Cache closed>"


def test_anything_with_bytes_is_a_value(cache: Cache) -> None:
    array = np.arange(24, dtype="<i4").reshape(4, 6)
    for data in (array, array.T, array[::2, ::3], array[:0], memoryview(b"abcdef")[::2]):
        cache["k"] = data
        assert bytes(cache["k"]) == memoryview(data).tobytes()
    for mutable in (bytearray(b"x" * 5000), bytearray(b"y" * 50)):
        cache["k"] = mutable
        expected = bytes(mutable)
        mutable[:] = b"gone"
        assert bytes(cache["k"]) == expected
    cache["copy"] = cache["k"]
    cache["k"] = cache["k"][::-1]
    assert bytes(cache["copy"]) == b"y" * 50


@pytest.mark.parametrize("length", [3073, PAGE, PAGE + 1, 4 * PAGE, 4 * PAGE + 1, 6 * PAGE])
def test_recycled_pages_are_zero_behind_a_value(mf: MemoryFile, length: int) -> None:
    used = mf.allocate(6 * PAGE)
    used.view()[:] = bytes(range(1, 9)) * (6 * PAGE // 8)
    with Cache(file=mf) as cache:
        pages = -(-length // PAGE) * PAGE
        with testing.pause_reclaimer(mf):
            used.release()
            value = os.urandom(length)
            cache["k"] = value
        assert mf.stats().recycled_bytes == pages
        (segment,) = [each for each in mf.segments() if each.refs]
        view = mf.map_range(pgalloc.FileRange(segment.start, segment.end), "r")
        assert bytes(view) == value + bytes(pages - length)
        del view


def test_a_value_of_enormous_length_costs_nothing(cache: Cache) -> None:
    enormous = np.broadcast_to(np.zeros(1, "u1"), 2**62)
    cache["k"] = b"old"
    with pytest.raises(MemoryError):
        cache["k"] = enormous
    assert bytes(cache["k"]) == b"old"
    with Cache("1M") as limited, pytest.raises(ValueError, match="value too large"):
        limited["k"] = enormous


def test_what_is_read_cannot_be_written(cache: Cache) -> None:
    cache["k"] = b"abc"
    for view in (cache["k"], cache.setdefault("k"), cache.pop("k")):
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", [8, 200, 3000, 5000])
def test_a_view_stays_whatever_becomes_of_its_key(policy: Policy, length: int) -> None:
    with Cache(policy=policy) as cache:
        cache.update({i: bytes([i]) * length for i in range(60)})
        views = {i: cache[i] for i in range(0, 60, 3)}
        for i in range(10):
            cache[i] = b"?" * length
        del cache[12]
        cache.pop(15)
        for _ in range(3):
            cache.popitem()
        cache.evict(20 * length)
        with testing.ManualPressure() as pressure:
            pressure.demand(1 << 30)
        cache.update(dict.fromkeys(range(100, 200), b"!" * length))
        cache.evict(1 << 30)  # with what was removed under its view, and does not wait
        testing.verify_cache(cache)
        cache.clear()
        cache.update(dict.fromkeys(range(100, 200), b"!" * length))
        assert all(bytes(view) == bytes([i]) * length for i, view in views.items())
        testing.verify_cache(cache)
    assert all(bytes(view) == bytes([i]) * length for i, view in views.items())


def test_a_dropped_cache_gives_everything_back() -> None:
    gc.disable()
    try:
        with MemoryFile() as mf:
            for _ in range(3):
                cache = Cache(file=mf, name="same")
                cache.update(dict.fromkeys(range(100), b"x" * 100))
                del cache
                assert mf.wait_for_reclaim(20)
                assert mf.segments() == []
            testing.verify(mf)
    finally:
        gc.enable()


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("maxsize", [PAGE, 3 * PAGE, 100 * PAGE, 700 * PAGE])
def test_maxsize_is_never_exceeded(policy: Policy, maxsize: int) -> None:
    rng = random.Random(maxsize)
    views = []
    with Cache(maxsize, policy=policy) as cache:
        assert cache.maxsize == maxsize
        for i in range(600):
            length = rng.choice([n for n in LENGTHS if n <= maxsize])
            cache[rng.randrange(200)] = bytes([i % 251]) * length
            assert cache.currsize <= maxsize
            testing.verify_cache(cache)
            key = rng.choice(list(cache))
            views.append((cache[key], bytes(cache[key])))
            if rng.random() < 0.2:
                views.clear()
        assert all(bytes(view) == expected for view, expected in views)
        assert cache.stats().evictions > 0 or maxsize == 700 * PAGE
        views.clear()


def test_a_value_that_is_too_large(cache: Cache) -> None:
    with Cache(4 * PAGE) as small:
        small["k"] = b"old"
        for length in (4 * PAGE + 1, 100 * PAGE):
            with pytest.raises(ValueError, match="too large"):
                small["k"] = bytes(length)
        assert bytes(small["k"]) == b"old"
        small["k"] = b"n" * 4 * PAGE
        assert small.currsize == 4 * PAGE


@pytest.mark.parametrize("length", [100, 200, 500, 1000, 2000, 3000])
def test_small_values_cost_little_more_than_their_bytes(cache: Cache, length: int) -> None:
    rng = random.Random(length)
    for i in range(3000):
        cache[i] = b"v" * length
    assert cache.stats().page_bytes <= 1.5 * 3000 * length
    for _ in range(6000):  # overwritten, and deleted and set again
        key = rng.randrange(3000)
        if rng.random() < 0.5:
            del cache[key]
        cache[key] = b"w" * length
    assert len(cache) == 3000
    assert cache.stats().page_bytes <= 1.5 * 3000 * length
    assert cache.stats().page_bytes == sum(s.end - s.start for s in cache.file.segments() if s.refs)


def test_evict_gives_pages_up(cache: Cache) -> None:
    for i in range(50):
        cache[i] = b"x" * 2 * PAGE
    assert cache.evict(0) == 0
    assert cache.evict(5 * PAGE) == 6 * PAGE
    assert cache.evict("40K") == 10 * PAGE
    assert cache.currsize == 84 * PAGE
    assert set(cache) == set(range(8, 50)), "the oldest went first"
    assert cache.evict(2**63 - 1) == 84 * PAGE
    assert len(cache) == cache.currsize == 0


def test_popitem_takes_what_would_go_next() -> None:
    with Cache(policy="lru") as cache:
        for key in "abcd":
            cache[key] = key.encode() * PAGE
        assert bytes(cache["a"][:1]) == b"a"
        order = [cache.popitem()[0] for _ in range(4)]
        assert order == ["b", "c", "d", "a"]
        assert cache.stats().hits == 1


def test_tags(cache: Cache) -> None:
    for i in range(30):
        cache.put(i, bytes([i]) * (100 if i % 2 else 5000), tag=("t", i % 3))
    cache.put(0, b"retagged", tag="other")
    cache[3] = b"untagged"
    del cache[6]
    assert cache.evict_tag(("t", 0)) == 7
    assert cache.evict_tag(("t", 0)) == cache.evict_tag("unknown") == 0
    assert set(cache) == {0, 3, *(i for i in range(30) if i % 3)}
    assert cache.evict_tag("other") == 1
    testing.verify_cache(cache)
    cache.clear()
    assert cache.stats().index_bytes == 0


# --- how long ------------------------------------------------------------------------------------


def test_expiry(cache: Cache, clock: testing.ManualClock) -> None:
    cache.put("short", b"s", expire=1)
    cache.put("long", b"l" * 5000, expire=10)
    cache.put("ever", b"e", expire=float("inf"))
    cache.put("ages", b"e", expire=10**400)
    clock.advance(0.999)
    assert len(cache) == 4
    view = cache["short"]
    clock.advance(0.001)
    assert cache.get("short") is None
    assert "short" not in cache
    assert list(cache) == ["long", "ever", "ages"]
    assert bytes(view) == b"s"
    cache.put("long", b"L", expire=100)
    clock.advance(50)
    assert bytes(cache["long"]) == b"L"
    clock.advance(60)
    assert cache.stats().entries == 2
    assert cache.stats().expirations == 2
    clock.advance(1e9)
    assert len(cache) == 2


def test_an_expired_value_does_not_block_setdefault_and_pop(
    cache: Cache, clock: testing.ManualClock
) -> None:
    for use in (lambda: bytes(cache.setdefault("k", b"new")), lambda: cache.pop("k", b"new")):
        cache.put("k", b"old", expire=1)
        clock.advance(2)
        assert use() == b"new"
        cache.pop("k", None)
    cache.put("k", b"old", expire=1)
    clock.advance(2)
    with pytest.raises(KeyError):
        cache.popitem()


def test_what_is_known_of_expiry_does_not_grow(cache: Cache, clock: testing.ManualClock) -> None:
    for i in range(5000):
        cache.put(i % 10, b"v", expire=1000 + i)
    testing.verify_cache(cache)
    clock.advance(10000)
    assert len(cache) == 0


# --- figures -------------------------------------------------------------------------------------


def test_statistics_add_up() -> None:
    rng = random.Random(1)
    replaced = removed = looked = 0
    with Cache("400K") as cache, testing.ManualClock(cache.file) as clock:
        for i in range(4000):
            key = rng.randrange(500)
            act = rng.random()
            if act < 0.6:
                before = cache.stats()
                there = key in cache
                cache.put(key, b"v" * rng.choice(LENGTHS[:-3]), expire=rng.choice([None, 5]))
                # Unless it had to make way for its own successor.
                evicted = cache.stats().evictions - before.evictions
                replaced += len(cache) + evicted == before.entries and there
            elif act < 0.7:
                removed += cache.pop(key, None) is not None
            elif act < 0.9:
                looked += 1
                cache.get(key)
            elif act < 0.91:
                with testing.ManualPressure() as pressure:
                    pressure.demand(20 * PAGE)
            if i % 7 == 0:
                clock.advance(1)
        stats = cache.stats()
        gone = stats.evictions + stats.discards + stats.expirations + removed + replaced
        assert stats.sets == gone + stats.entries
        assert stats.entries == len(cache)
        assert stats.value_bytes == sum(len(view) for view in cache.values())
        assert stats.bytes == cache.currsize
        assert min(stats.evictions, stats.discards, stats.expirations, removed, replaced) > 0


def test_only_what_was_asked_for_counts(cache: Cache) -> None:
    cache["k"] = b"v"
    assert "k" in cache
    assert len(cache) == 1
    assert list(cache) == ["k"]
    assert (cache.stats().hits, cache.stats().misses) == (0, 0)
    cache.get("k"), cache.get("x"), cache.get("x")
    cache.setdefault("new", b"x")
    cache.setdefault("new", b"x")
    cache.pop("new"), cache.pop("new", None)
    assert (cache.stats().hits, cache.stats().misses) == (3, 4)


def test_a_function_that_is_cached() -> None:
    calls: list[Any] = []

    with Cache("1M") as cache:

        @pgalloc.cached(cache, tag="f")
        def f(n: int, *, letter: str = "a") -> bytes:
            """Doc."""
            calls.append((n, letter))
            return letter.encode() * n

        for _ in range(2):
            assert bytes(f(3)) == b"aaa"
            assert bytes(f(3, letter="b")) == b"bbb"
            assert f(0).readonly
        assert calls == [(3, "a"), (3, "b"), (0, "a")]
        assert (cache.stats().hits, cache.stats().misses) == (3, 3)
        assert f.__doc__ == "Doc."
        assert f.cache is cache  # type: ignore[attr-defined]
        assert f.cache_key(3) in cache  # type: ignore[attr-defined]
        assert bytes(f(2 << 20)) == b"a" * (2 << 20), "too large to be kept is no error"
        assert cache.evict_tag("f") == 3
        by_key = pgalloc.cached(cache, key=lambda *_: "same", expire=1)(lambda n: bytes([n]))
        assert bytes(by_key(1)) == bytes(by_key(2)) == b"\1"
        with pytest.raises(TypeError):
            f(1.5)  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        f(3)


@pytest.mark.parametrize("own", [True, False])
def test_a_closed_cache(own: bool) -> None:
    with MemoryFile() as mf:
        cache = Cache(file=None if own else mf, name="n")
        cache["k"] = b"v"
        view = cache["k"]
        cache.close()
        cache.close()
        assert cache.closed
        assert cache.file.closed is own
        uses: list[Any] = [
            lambda: cache["k"],
            lambda: cache.get("x"),
            lambda: cache.put("k", b""),
            lambda: cache.put("k", bytes(5000)),
            lambda: cache.pop("k"),
            lambda: cache.setdefault("k", b""),
            lambda: cache.evict_tag("t"),
            lambda: cache.evict(1),
            lambda: "k" in cache,
            *(cache.popitem, cache.clear, cache.stats, cache.__len__, cache.__iter__),
        ]
        for use in uses:
            with pytest.raises(ClosedError):
                use()
        assert bytes(view) == b"v"
        del view
        if not own:
            Cache(file=mf, name="n").close()  # the name is free again
            assert mf.wait_for_reclaim(20)
            assert mf.segments() == []


def test_two_caches_in_one_file() -> None:
    with MemoryFile() as mf, Cache(file=mf) as a, Cache("1M", file=mf, policy="lru") as b:
        for i in range(300):
            a[i], b[i] = b"a" * 3 * i, b"b" * 5 * i
        assert all(bytes(a[i]) == b"a" * 3 * i for i in range(300))
        assert all(bytes(view) == b"b" * 5 * i for i, view in b.items())
        a.clear()
        assert a.currsize == 0
        testing.verify_cache(a)
        testing.verify_cache(b)
        assert len(b) > 100
    # The file went first, if it goes first.
    mf = MemoryFile()
    cache = Cache(file=mf)
    cache["k"] = b"v"
    mf.close()
    with pytest.raises(ClosedError):
        cache.get("k")
    cache.close()
