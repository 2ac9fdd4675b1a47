"""A cache in an image and back, and payloads that lie."""

from __future__ import annotations

import io
import os
import random
import struct
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE

import pgalloc
from pgalloc import Cache, MemoryFile, SnapshotError, _core, testing
from pgalloc.cache import snapshot
from pgalloc.cache.keys import Decoder, encode_key
from pgalloc.cache.snapshot import encode

LENGTHS = [0, 1, 200, 512, 513, 3072, 3073, 4096, 4097, 30000]


def fill(cache: Cache, count: int = 120) -> dict[Any, bytes]:
    rng = random.Random(count)
    for i in range(count):
        key = rng.choice([i, str(i), b"%d" % i, (i, ("x", b"\xff"))])
        data = rng.randbytes(rng.choice(LENGTHS))
        tag = rng.choice([None, "even", ("t", 1)])
        cache.put(key, data, expire=rng.choice([None, 1000]), tag=tag)
    for key in list(cache)[::4]:
        del cache[key]
    return {key: bytes(view) for key, view in cache.items()}


@pytest.mark.parametrize("mode", ["eager", "background", "stream"])
def test_save_and_restore(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    with MemoryFile() as mf, Cache(file=mf, name="c") as cache, Cache(file=mf, name="d") as other:
        expected, others = fill(cache), fill(other, 30)
        tagged = {
            Decoder(key).key()
            for _, _, _, values in _core.cache_save(cache._store)
            for _, _, _, tag, key in values
            if tag == encode_key("even")
        }
        mf.save(path)
    caches: dict[str, Cache] = {}

    def hook(name: str) -> Any:
        def restore(memory_file: Any, data: bytes) -> None:
            caches[name] = Cache.from_snapshot(memory_file, data, name=name)

        return restore

    hooks = {name: hook(name) for name in "cd"}
    source: Any = io.BytesIO(path.read_bytes()) if mode == "stream" else path
    restored = MemoryFile.restore(source, background=mode == "background", hooks=hooks)
    with restored, caches["c"] as cache, caches["d"] as other:
        assert {key: bytes(view) for key, view in cache.items()} == expected
        assert {key: bytes(view) for key, view in other.items()} == others
        assert restored.unadopted() == []
        testing.verify_cache(cache)
        fill(cache, 300)
        testing.verify_cache(cache)
        assert cache.evict_tag("even") >= len(tagged & set(cache))
        with testing.ManualPressure() as pressure:
            pressure.demand(1 << 40)
        testing.verify_cache(cache)
        restored.save(tmp_path / "again")
        caches.clear()
        again = MemoryFile.restore(tmp_path / "again", hooks=hooks)
        assert set(caches["c"]) == set(cache)
        for made in caches.values():
            made.close()
        again.close()


def test_expiry_goes_on_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(wall=1e9)
    monkeypatch.setattr(snapshot, "time", types.SimpleNamespace(time=lambda: clock.wall))
    with Cache() as cache:
        for seconds in (10, 100, 1e9, float("inf")):
            cache.put(str(seconds), b"v", expire=seconds)
        image = io.BytesIO()
        cache.file.save_hook("c", save=lambda: encode(cache))
        cache.file.save(image)
    clock.wall += 60  # another boot, a minute later
    made: list[Cache] = []
    times: list[testing.ManualClock] = []

    def restore(file: Any, data: bytes) -> None:
        times.append(testing.ManualClock(file))
        times[0].__enter__()
        made.append(Cache.from_snapshot(file, data))

    with MemoryFile.restore(io.BytesIO(image.getvalue()), hooks={"c": restore}), made[0] as cache:
        assert set(cache) == {"100", "1000000000.0", "inf"}
        times[0].advance(39)
        assert "100" in cache
        times[0].advance(2)
        assert "100" not in cache
        times[0].advance(1e9)
        assert set(cache) == {"inf"}


def test_a_smaller_cache_takes_what_fits() -> None:
    with Cache(name="c") as cache:
        expected = fill(cache, 200)
        image = io.BytesIO()
        cache.file.save(image)
    made: list[Cache] = []

    def restore(memory_file: Any, data: bytes) -> None:
        made.append(Cache.from_snapshot(memory_file, data, maxsize=40 * PAGE, policy="lru"))

    mf = MemoryFile.restore(io.BytesIO(image.getvalue()), hooks={"c": restore})
    with mf, made[0] as cache:
        assert 0 < cache.currsize <= 40 * PAGE
        assert all(bytes(view) == expected[key] for key, view in cache.items())
        assert mf.unadopted() == []
        testing.verify_cache(cache)


def test_a_cache_that_is_gone_saves_nothing(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        cache = Cache(file=mf, name="c")
        assert encode(None) == b""
        hook = dict(mf._hooks.collect())  # type: ignore[attr-defined]
        assert "c" in hook
        cache.close()
        mf.save(tmp_path / "image")
    with MemoryFile.restore(tmp_path / "image"), pytest.raises(TypeError):
        Cache.from_snapshot(None, b"")  # type: ignore[arg-type]


class Image:
    """A small file with a cache, and its payload."""

    def __init__(self) -> None:
        with Cache(name="c") as cache:
            cache.put("large", b"L" * (PAGE + 1), tag="t")
            cache.put(b"small", b"S" * 300, expire=1000)
            cache.put(("k", 1), b"s" * 300)
            cache.put(-5, b"m" * 2000)
            self.payload = encode(cache)
            cache.file.remove_save_hook("c")
            image = io.BytesIO()
            cache.file.save(image)
            self.image = image.getvalue()
            self.segments = [s for s in cache.file.segments() if s.refs]
        self.refused = self.taken = 0

    def try_payload(self, payload: bytes) -> None:
        """SnapshotError, or a cache that is consistent; and nothing is held afterwards."""
        with MemoryFile.restore(io.BytesIO(self.image)) as mf:
            before = sum(r.length for r, _ in self.owned(mf))
            try:
                cache = Cache.from_snapshot(mf, payload)
            except SnapshotError:
                self.refused += 1
            else:
                self.taken += 1
                testing.verify_cache(cache)
                assert all(len(bytes(view)) == view.nbytes for view in cache.values())
                cache["new"] = b"n" * 300
                cache["large"] = b"n" * 10000
                testing.verify_cache(cache)
                cache.close()
            testing.verify(mf)
            mf.drop_unadopted()
            assert mf.wait_for_reclaim(20)
            assert mf.segments() == [], "a reference stayed behind"
            assert before

    @staticmethod
    def owned(mf: MemoryFile) -> list[tuple[pgalloc.FileRange, int]]:
        return [(pgalloc.FileRange(s.start, s.end), s.refs) for s in mf.segments()]


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


def test_every_truncation(image: Image) -> None:
    image.try_payload(image.payload)
    assert (image.taken, image.refused) == (1, 0)
    for end in range(len(image.payload)):
        image.try_payload(image.payload[:end])
    image.try_payload(image.payload + b"\0")
    assert image.refused > len(image.payload) * 0.9


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_flipped(image: Image, flip: int) -> None:
    refused = image.refused
    for at in range(len(image.payload)):
        forged = bytearray(image.payload)
        forged[at] ^= flip
        image.try_payload(bytes(forged))
    assert image.refused > refused


def test_payloads_that_lie(image: Image) -> None:
    head = struct.pack("<I", 1)
    start, length = image.segments[0].start, image.segments[0].end - image.segments[0].start
    key, holder, value = b"i\1\0\0\0\7", "<QQII", "<QQd?"

    def forged(
        *values: tuple[int, int, float, bytes], at: int = start, size: int = length, slot: int = 0
    ) -> bytes:
        parts = [head, struct.pack(holder, at, size, slot, len(values))]
        for offset, nbytes, expires, name in values:
            parts.append(struct.pack(value, offset, nbytes, expires, False) + name)
        return b"".join(parts)

    image.taken = 0
    image.try_payload(forged((0, 10, 0.0, key)))
    image.try_payload(forged((0, 8, 0.0, key), (8, 8, 0.0, b"b\0\0\0\0"), slot=8))
    assert image.taken == 2
    lies = [
        forged(),
        forged((0, 10, 0.0, key), (0, 10, 0.0, key)),
        forged((0, length + 1, 0.0, key)),
        forged((8, 10, 0.0, key)),
        forged((0, 10, float("nan"), key)),
        forged((0, 10, float("inf"), key)),
        forged((0, 10, -1.0, key)),
        forged((0, 10, 0.0, key), size=0),
        forged((0, 10, 0.0, key), at=start + 1),
        forged((0, 10, 0.0, key), at=2**62),
        forged((0, 10, 0.0, key), at=2**64 - PAGE),
        forged((0, 10, 0.0, key), size=2**63),
        forged((0, 10, 0.0, key), slot=1),
        forged((0, 10, 0.0, key), slot=length + 8),
        forged((0, 9, 0.0, key), slot=8),
        forged((4, 4, 0.0, key), slot=8),
        forged((0, 8, 0.0, key), (0, 8, 0.0, b"b\0\0\0\0"), slot=8),
        forged((0, 8, 0.0, key), (8, 8, 0.0, key), slot=8),
        forged((0, 10, 0.0, b"x\0\0\0\0")),
        forged((0, 10, 0.0, b"s\1\0\0\0\xff")),
        forged((0, 10, 0.0, b"b\xff\xff\xff\xff")),
        forged((0, 10, 0.0, b"t\xff\xff\xff\xff")),
        forged((0, 10, 0.0, b"t\1\0\0\0" * 50 + key)),
        forged((0, 10, 0.0, key)) + forged((0, 10, 0.0, key))[4:],  # the same pages twice
        struct.pack("<I", 2),
    ]
    for lie in lies:
        image.try_payload(lie)
    # Values that have expired are no lie.
    image.try_payload(forged((0, 10, 1.0, key)))
    assert image.taken == 3


def test_payloads_at_random(image: Image) -> None:
    rng = random.Random(os.environ.get("SEED", "3"))
    for _ in range(300):
        forged = bytearray(image.payload)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(forged))
            forged[at : at + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([0, 1, 8]))
        image.try_payload(bytes(forged))
