"""What counts in a Cache: keys and index, the difference when a key is set anew."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE

from pgalloc import Cache, MemoryFile, OptionError, Policy, testing

POLICIES = list(Policy)
MIB = 1 << 20


def long(number: int) -> str:
    return "https://example.org/" + str(number).rjust(500, "x")


KEYS = {
    "short": lambda n: n,
    "long text": long,
    "long bytes": lambda n: long(n).encode(),
    "wide text": lambda n: "\U0001f600" * 100 + str(n),
    "tuple": lambda n: (long(n), ("x", n, (b"y" * 50,))),
    "large int": lambda n: (1 << 4000) + n,
}


def resident_bytes() -> int:
    """Of the heap, the values and the index."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


# --- keys count ----------------------------------------------------------------------------------

GROWTH = """
import gc, sys
sys.path[:0] = {path!r}
from test_cache_sizes import KEYS, resident_bytes
from pgalloc import Cache, cached
key = KEYS[{kind!r}]
cache = Cache("4M")
load = cached(cache)(lambda k: b"0123456789abcdef")
for n in range(3000):  # what Python needs once
    cache[key(n)] = b"x"
cache.clear()
before = resident_bytes()
for n in range(60_000):
    {use}
gc.collect()
print(resident_bytes() - before, cache.currsize, len(cache))
"""


@pytest.mark.parametrize("use", ["put", "tag", "cached"])
@pytest.mark.parametrize("kind", KEYS)
def test_four_megabytes_are_about_four_megabytes(kind: str, use: str) -> None:
    """Of the whole process, with values of 16 bytes."""
    code = {
        "put": "cache[key(n)] = b'0123456789abcdef'",
        "tag": "cache.put(key(n), b'0123456789abcdef', tag=key(n), expire=1e6)",
        "cached": "load(key(n))",
    }[use]
    path = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", GROWTH.format(path=path, kind=kind, use=code)],
        capture_output=True,
        text=True,
        timeout=55,
        check=True,
    )
    grown, counted, count = map(int, done.stdout.split())
    assert counted <= 4 * MIB
    assert counted > 3 * MIB, "and all of it may be used"
    assert grown < 6 * MIB, f"{count} values"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KEYS)
def test_the_size_never_exceeds_maxsize(policy: Policy, kind: str) -> None:
    rng = random.Random(1)
    key = KEYS[kind]
    for maxsize in (PAGE, 3 * PAGE, 100 * PAGE):
        with Cache(maxsize, policy=policy) as cache:
            for _ in range(300):
                length = rng.choice([0, 10, 300, 2000, 4096, 9000])
                try:
                    cache.put(
                        key(rng.randrange(60)), bytes(length), tag=rng.choice([None, long(1)])
                    )
                except ValueError as error:
                    assert str(maxsize) in str(error)  # noqa: PT017
                assert cache.currsize <= maxsize
                testing.verify_cache(cache)
            assert len(cache) > 0 or maxsize == PAGE


def test_values_of_a_page_with_short_keys_count_as_their_pages() -> None:
    with Cache(8 * PAGE) as cache:
        for number in range(8):
            cache.put(("user", number), bytes(PAGE))
        assert len(cache) == 8
        assert cache.currsize == cache.stats().page_bytes == 8 * PAGE
        assert 8 * 70 < cache.stats().index_bytes < 8 * 150
    with Cache() as cache:
        cache["k" * MIB] = b""
        assert cache.currsize > MIB, "also without maxsize"
        assert cache.stats().bytes == cache.currsize
        assert cache.evict(1) > MIB
        assert cache.currsize == cache.stats().index_bytes == 0


def test_a_key_that_is_too_large() -> None:
    with Cache("1M") as cache:
        cache["kept"] = b"v"
        for length in (0, 5000):
            with pytest.raises(ValueError, match=r"too large.*key.*1048576") as error:
                cache["k" * (2 * MIB)] = bytes(length)
            assert len(str(error.value)) < 200
        assert list(cache) == ["kept"]


def test_the_message_for_what_does_not_fit() -> None:
    with Cache("1M") as cache:
        with pytest.raises(ValueError, match="1048576") as error:
            cache["k"] = bytes(9 << 20)
        assert "9437184" in str(error.value)
    with pytest.raises(OptionError, match=r"4096.*1000"):
        Cache(1000)


# --- set anew ------------------------------------------------------------------------------------


def filled(policy: Policy, length: int, **options: Any) -> Cache:
    """A cache that is full: one value more, and others go."""
    pages = 256 if 512 < length <= 3000 else 64
    cache = Cache(pages * PAGE, policy=policy, **options)
    number = 0
    while cache.stats().evictions == 0:
        cache[number] = bytes([number % 251]) * length
        number += 1
    return cache


def restored(cache: Cache, tmp_path: Path) -> Cache:
    cache.file.save(tmp_path / "image")
    caches: list[Cache] = []
    options: Any = {"maxsize": cache.maxsize, "policy": cache.policy}
    hook = lambda file, data: caches.append(Cache.from_snapshot(file, data, **options))  # noqa: E731
    MemoryFile.restore(tmp_path / "image", hooks={"c": hook})
    return caches[0]


@pytest.fixture(params=["made here", "restored"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: list[Cache] = []

    def make(policy: Policy, length: int) -> Cache:
        made.append(filled(policy, length, name="c"))
        if request.param == "restored":
            made.append(restored(made[0], tmp_path))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
        cache.file.close()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", [16, 100, 1000, 3000, 4096, 3 * PAGE])
@pytest.mark.parametrize("change", [0, -1, -8])
def test_the_same_size_again_and_a_smaller_one(
    full: Any, policy: Policy, length: int, change: int
) -> None:
    cache = full(policy, length)
    there = set(cache)
    order = [*there] * 2
    random.Random(length).shuffle(order)
    for key in order:
        cache[key] = b"n" * (length + change)
        if change > -8 or length > 3000:  # else of another slot size
            assert len(cache) == len(there), f"after {key}"
    testing.verify_cache(cache)
    if change > -8 or length > 3000:
        assert set(cache) == there
    assert all(bytes(view) == b"n" * (length + change) for view in cache.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_size_again_where_all_slots_are_taken(policy: Policy) -> None:
    count = 64 * 64  # all slots of so many slabs
    with Cache(policy=policy) as large:
        for number in range(count):
            large[number] = bytes(64)
        size = large.currsize
    with Cache(size, policy=policy) as cache:
        for number in range(count):
            cache[number] = bytes(64)
        view = cache[5]
        for number in range(count):
            if number // 64 != 5 // 64:  # the slots of a slab with a view are not used again
                cache[number] = b"n" * 64
                assert len(cache) == count
        assert bytes(view) == bytes(64)
        testing.verify_cache(cache)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("view", [False, True])
def test_a_larger_one_takes_the_difference(full: Any, policy: Policy, view: bool) -> None:
    cache = full(policy, PAGE)
    key = list(cache)[7]
    held = cache[key] if view else None
    there = len(cache)
    for pages in (2, 3, 10):
        cache[key] = bytes(pages * PAGE)
        assert len(cache) == there + 1 - pages
        testing.verify_cache(cache)
    cache[key] = b"small again"
    assert len(cache) == there - 9
    for number in range(9):
        cache["new", number] = bytes(PAGE)
    assert len(cache) == there, "what it gave back is free"
    assert held is None or len(held) == PAGE
    del held


@pytest.mark.parametrize("policy", POLICIES)
def test_between_slabs_and_pages(policy: Policy) -> None:
    """Random sizes in a full cache: what goes is not more than what is needed and a holder."""
    rng = random.Random(4)
    lengths = [0, 20, 200, 1000, 3000, 5000, 20000]
    with Cache(600 * PAGE, policy=policy) as cache:
        for number in range(3000):
            cache[number] = bytes(rng.choice(lengths))
        for _ in range(600):
            key = rng.choice(list(cache))
            before, evictions = cache.currsize, cache.stats().evictions
            length = rng.choice(lengths)
            cache[key] = bytes([key % 251]) * length
            testing.verify_cache(cache)
            assert bytes(cache[key]) == bytes([key % 251]) * length
            if cache.stats().evictions > evictions:
                assert cache.currsize > before - 12 * PAGE - 30_000


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", [100, PAGE])
def test_what_does_not_fit_leaves_the_old_value(policy: Policy, length: int) -> None:
    with filled(policy, length) as cache:
        there = {key: bytes(view) for key, view in cache.items()}
        for key in list(there)[:20]:
            with pytest.raises(ValueError, match="too large"):
                cache[key] = bytes(cache.maxsize + 1)  # type: ignore[operator]
            with pytest.raises(ValueError, match="too large"):
                cache.put(key, b"", tag="t" * (cache.maxsize + 1))  # type: ignore[operator]
        assert {key: bytes(view) for key, view in cache.items()} == there


@pytest.mark.parametrize("length", [16, 3000])
def test_a_slot_that_a_view_shows_is_not_used_again(length: int) -> None:
    with filled(Policy.LRU, length) as cache:
        views = {key: (view, bytes(view)) for key, view in cache.items()}
        for key in list(views):
            cache[key] = b"n" * length
            testing.verify_cache(cache)
        assert all(bytes(view) == copy for view, copy in views.values())
        views.clear()
