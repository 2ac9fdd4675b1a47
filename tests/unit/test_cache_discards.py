"""Cache when memory runs short: what is missed, who is told, what the kernel gets back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import PAGE, stored

import pgalloc
from pgalloc import Cache, MemoryFile, Policy, testing

MIB = 1 << 20
POLICIES = list(Policy)


@pytest.fixture
def pressure() -> Iterator[testing.ManualPressure]:
    with testing.ManualPressure() as manual:
        yield manual


def fill(cache: Cache, count: int, length: int) -> None:
    for i in range(count):
        cache[i] = bytes([i % 251]) * length


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", [10, 200, 1000, 3000, PAGE, 5 * PAGE])
def test_what_was_discarded_is_missing(
    policy: Policy, length: int, pressure: testing.ManualPressure
) -> None:
    with Cache(policy=policy) as cache:
        count = max(40, min(2000, 200 * PAGE // length))
        fill(cache, count, length)
        before = cache.stats().page_bytes
        assert before - 4 * PAGE <= stored(cache.file) <= before  # the last slab is not full
        assert pressure.demand(before // 2) >= before // 2
        there = [i for i in range(count) if cache.get(i) is not None]
        assert 0 < len(there) < count
        assert all(bytes(cache[i]) == bytes([i % 251]) * length for i in there)
        assert list(cache) == there
        assert len(cache) == len(there)
        assert [i for i in range(count) if i in cache] == there
        assert cache.stats().page_bytes <= before // 2
        assert cache.stats().discards == count - len(there)
        assert cache.file.wait_for_reclaim(20)
        assert cache.stats().page_bytes - 4 * PAGE <= stored(cache.file) <= cache.stats().page_bytes
        fill(cache, count, length)
        testing.verify_cache(cache)
        assert len(cache) == count


def test_all_that_can_go_goes(pressure: testing.ManualPressure) -> None:
    with Cache() as cache:
        fill(cache, 100, 300)
        fill(cache, 50, 2 * PAGE)
        held = cache[7]
        pressure.demand(1 << 40)
        # Pages that are read, and slabs that are being filled, are not discarded.
        assert cache.currsize <= held.nbytes + 8 * PAGE
        assert bytes(held) == b"\7" * 2 * PAGE
        del held
        pressure.demand(1 << 40)
        assert cache.file.wait_for_reclaim(20)
        assert stored(cache.file) <= 8 * PAGE
        testing.verify_cache(cache)


def test_every_call_knows_at_once(pressure: testing.ManualPressure) -> None:
    for ask, expected in (
        (lambda c: c.get(0), None),
        (lambda c: 0 in c, False),
        (len, 0),
        (list, []),
        (lambda c: c.currsize, 0),
        (lambda c: c.stats().entries, 0),
        (lambda c: c.pop(0, None), None),
        (lambda c: c.evict(MIB), 0),
        (lambda c: bytes(c.setdefault(0, b"n" * PAGE)), b"n" * PAGE),
    ):
        with Cache() as cache:
            cache[0] = b"x" * PAGE
            pressure.demand(PAGE)
            assert ask(cache) == expected  # type: ignore[operator]
        with Cache() as cache:
            cache[0] = b"x" * PAGE
            pressure.demand(PAGE)
            with pytest.raises(KeyError):
                cache.popitem()


@pytest.mark.parametrize("length", [100, PAGE])
def test_on_discard_is_told_once_per_key(length: int, pressure: testing.ManualPressure) -> None:
    told: list[Any] = []
    with Cache(on_discard=told.append) as cache:
        for round_ in range(5):
            fill(cache, 200, length)
            cache.put("tagged", b"t" * length, tag="t", expire=1000)
            there = set(cache)
            pressure.demand((10 + 20 * round_) * PAGE)
            assert told == [], "not by the guard"
            lost = there - set(cache)
            assert lost
            assert sorted(told, key=str) == sorted(lost, key=str)
            told.clear()
        cache.evict(MIB)
        cache.clear()
    assert told == [], "what is evicted or removed was not discarded"


def test_on_discard_that_raises(pressure: testing.ManualPressure) -> None:
    told: list[Any] = []

    def complain(key: Any) -> None:
        told.append(key)
        raise RuntimeError(key)

    with Cache(on_discard=complain) as cache:
        fill(cache, 20, PAGE)
        pressure.demand(4 * PAGE)
        with pytest.raises(RuntimeError):
            cache["new"] = b"n" * 100
        assert bytes(cache["new"]) == b"n" * 100, "what it interrupted was done"
        raised = 1
        while True:
            try:
                cache.get("absent")
                break
            except RuntimeError:
                raised += 1
        assert raised == len(told) == len(set(told)) == 4
        testing.verify_cache(cache)


def test_on_discard_that_uses_the_cache(pressure: testing.ManualPressure) -> None:
    told: list[Callable[[Any], None]] = []
    with Cache("4M", on_discard=lambda key: told[0](key)) as cache:

        def again(key: Any) -> None:
            cache[key] = b"again" + bytes(PAGE)
            assert cache.get("absent") is None
            cache.pop(5, None)
            cache.evict(PAGE)

        told.append(again)
        fill(cache, 100, PAGE)
        pressure.demand(50 * PAGE)
        for i in range(100):
            view = cache.get(i)
            assert view is None or bytes(view[:5]) in (b"again", bytes([i]) * 5)
        del view
        testing.verify_cache(cache)


def test_a_callback_in_another_thread_may_wait_for_the_cache(
    pressure: testing.ManualPressure,
) -> None:
    """on_discard is called without the lock, by every method."""
    import threading

    used = threading.Event()

    def wait(key: Any) -> None:
        thread = threading.Thread(target=lambda: (len(cache), used.set()))
        thread.start()
        thread.join(10)
        assert used.is_set()

    for ask in (
        lambda c: c.pop("absent", None),
        lambda c: c.popitem(),
        lambda c: c.clear(),
        lambda c: c.pop(9),
        lambda c: c.setdefault("new", b"n"),
    ):
        with Cache(on_discard=wait, policy="lru") as cache:
            fill(cache, 10, PAGE)
            pressure.demand(PAGE)
            used.clear()
            ask(cache)
            assert used.is_set()


def test_the_least_worth_goes_first(pressure: testing.ManualPressure) -> None:
    for policy in POLICIES:
        with Cache(policy=policy) as cache:
            fill(cache, 100, PAGE)
            for _ in range(3):
                for i in range(0, 100, 10):
                    assert cache[i]
            pressure.demand(60 * PAGE)
            assert set(range(0, 100, 10)) <= set(cache), policy
            assert len(cache) == 40


def test_several_caches_of_a_file_and_others_beside_them(pressure: testing.ManualPressure) -> None:
    with MemoryFile() as mf, Cache(file=mf) as a, Cache(file=mf, policy="lru") as b:
        fill(a, 100, PAGE)
        other = mf.allocate(PAGE)
        other._write(0, b"o" * PAGE)
        other.unpin()
        fill(b, 100, PAGE)
        pressure.demand(100 * PAGE)
        assert len(a) == 0
        assert len(b) == 100
        pressure.demand(100 * PAGE)
        assert not other.pin()
        assert len(b) <= 1
        other.release()
        testing.verify_cache(a)
        testing.verify_cache(b)


@pytest.mark.parametrize("policy", POLICIES)
def test_in_any_order(policy: Policy, pressure: testing.ManualPressure) -> None:
    """Whatever is there is right; whatever is not there was discarded or removed."""
    rng = random.Random(5)
    model: dict[int, bytes] = {}
    told: list[Any] = []
    held: list[tuple[memoryview, bytes]] = []
    with Cache("3M", policy=policy, on_discard=told.append) as cache:
        for step in range(3000):
            key = rng.randrange(300)
            act = rng.random()
            if act < 0.5:
                model[key] = rng.randbytes(rng.choice([0, 5, 200, 600, 3000, 5000, 30000]))
                cache.put(key, model[key], tag=key % 7)
            elif act < 0.7:
                view = cache.get(key)
                if view is not None:
                    assert bytes(view) == model[key]
                    held.append((view, model[key]))
            elif act < 0.75:
                cache.pop(key, None)
                model.pop(key, None)
            elif act < 0.8:
                pressure.demand(rng.randrange(100) * PAGE)
            elif act < 0.82:
                cache.evict(rng.randrange(50) * PAGE)
            elif act < 0.83:
                cache.evict_tag(key % 7)
            elif act < 0.9 and held:
                held.pop(rng.randrange(len(held)))
            elif act < 0.92 and len(cache):
                key, view = cache.popitem()
                assert bytes(view) == model[key]
            if step % 10 == 0:
                testing.verify_cache(cache)
        assert all(bytes(view) == model[key] for key, view in cache.items())
        assert all(bytes(view) == expected for view, expected in held)
        assert cache.stats().discards == len(told) > 50
        held.clear()
        view = None


def test_no_memory_for_a_value() -> None:
    """OutOfMemoryError: the old value is still there, and nothing is lost."""
    with MemoryFile(max_allocatable_bytes=8 * PAGE) as mf, Cache(file=mf) as cache:
        cache["k"] = b"o" * PAGE
        cache["small"] = b"s"
        with testing.ManualPressure():
            for data in (bytes(8 * PAGE), bytes(100 * PAGE)):
                with pytest.raises(pgalloc.OutOfMemoryError):
                    cache["k"] = data
        assert bytes(cache["k"]) == b"o" * PAGE
        while True:
            try:
                cache[len(cache)] = bytes(3000)
            except pgalloc.OutOfMemoryError:
                break
        testing.verify_cache(cache)
        assert bytes(cache["small"]) == b"s"
