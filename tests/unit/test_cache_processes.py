"""One cache in several processes: forked children, and those that connect."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAGE
from waiting import TIMEOUT_S, eventually

import pgalloc
from pgalloc import Cache, ClosedError, MemoryFile, Policy, testing

LENGTHS = [0, 1, 20, 500, 2000, 2048, 2049, 3072, 3073, PAGE, 70_000, 1 << 20]


def stamped(key: Any, number: int, length: int) -> bytes:
    """A value that says whose it is, all over."""
    stamp = b"%s/%d;" % (repr(key).encode(), number)
    return (stamp * (length // len(stamp) + 1))[: max(length, len(stamp))]


def is_stamped(view: Any, key: Any) -> bool:
    data = bytes(view)
    stamp, _, _ = data.partition(b";")
    whole = stamp + b";"
    return (
        data.startswith(repr(key).encode() + b"/")
        and data == (whole * (len(data) // len(whole) + 1))[: len(data)]
    )


def in_child(act: Callable[[], object]) -> None:
    """What a forked child does; it fails as the child does."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture(params=["child", "connected"])
def others(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Cache, Any], None]:
    """Calls act(cache) in another process than the cache's own."""
    path = tmp_path / "s"

    def run(cache: Cache, act: Callable[[Cache], object]) -> None:
        if request.param == "child":
            in_child(lambda: act(cache))
            return
        with cache.serve(path):

            def connected() -> None:
                with Cache.connect(path) as other:
                    act(other)

            in_child(connected)

    return run


@pytest.mark.parametrize("policy", list(Policy))
def test_it_does_what_a_dict_does(others: Any, policy: Policy) -> None:
    keys = ["a", b"a", 7, -(2**70), ("t", 1, (b"x",)), "l" * 5000]

    def use(cache: Cache) -> None:
        rng = random.Random(3)
        model: dict[Any, bytes] = {"before": b"the owner's"}
        held: list[tuple[memoryview, bytes]] = []
        for step in range(400):
            key = rng.choice([*keys, *range(20)])
            act = rng.randrange(12)
            if act < 4:
                cache[key] = model[key] = stamped(key, step, rng.choice(LENGTHS))
            elif act < 7:
                view = cache.get(key)
                assert (None if view is None else bytes(view)) == model.get(key)
                if view is not None:
                    held.append((view, model[key]))
            elif act == 7:
                view = cache.pop(key, None)
                assert (None if view is None else bytes(view)) == model.pop(key, None)
            elif act == 8:
                assert (key in cache) == (key in model)
                if cache.add(key, b"added"):
                    assert key not in model
                    model[key] = b"added"
            elif act == 9:
                there = model.pop(key, None) is not None
                if there:
                    del cache[key]
                else:
                    with pytest.raises(KeyError):
                        del cache[key]
            elif act == 10:
                assert len(cache) == len(model)
                assert set(cache) == set(model)
            else:
                assert all(bytes(view) == expected for view, expected in held)
                del held[:]
        assert {key: bytes(view) for key, view in cache.items()} == model

    with Cache(policy=policy) as cache:
        cache["before"] = b"the owner's"
        others(cache, use)
        assert bytes(cache["before"]) == b"the owner's"
        assert all(is_stamped(v, k) or bytes(v) in (b"added", b"the owner's")
                   for k, v in cache.items())  # fmt: skip
        eventually(lambda: testing.verify_cache(cache) is None)


def test_all_calls(others: Any) -> None:
    def use(cache: Cache) -> None:
        assert cache.maxsize == 64 << 20
        assert cache.policy is Policy.LRU
        cache.put("e", b"v", expire=0.05)
        cache.put("t1", b"v" * 9000, tag="t")
        cache.put("t2", b"v", tag="t", expire=100)
        eventually(lambda: cache.get("e") is None)
        assert cache.touch("t2", 1000)
        assert not cache.touch("none", 1000)
        assert cache.evict_tag("t") == 2
        assert cache.incr("n", initial=5) == 6
        assert [cache.incr("n", 10), cache.incr("n", -1)] == [16, 15]
        assert bytes(cache["n"]) == b"15"
        with pytest.raises(KeyError):
            cache.incr("none")
        cache["text"] = b"no number"
        for key, delta in (("text", 1), ("n", 2**63 - 1)):
            with pytest.raises(ValueError):
                cache.incr(key, delta)
        cache.put_many({1: b"one", 2: b"two"})
        assert {k: bytes(v) for k, v in cache.get_many([1, 2, 3]).items()} == {1: b"one", 2: b"two"}
        assert bytes(cache.setdefault(1, b"x")) == b"one"
        assert bytes(cache.setdefault(4, b"four")) == b"four"
        cache["array"] = np.arange(1000)[::2]
        assert np.frombuffer(cache["array"], dtype=np.int64).sum() == 249_500
        before = cache.stats()
        assert cache.currsize == before.bytes > 0
        with pytest.raises(ValueError, match="too large"):
            cache["huge"] = bytes(65 << 20)
        large = os.urandom(9 << 20)
        cache["large"] = large
        assert bytes(cache["large"]) == large
        cache.put("large", large[:-1], tag="again")
        assert bytes(cache["large"]) == large[:-1]
        assert cache.evict(1) > 0
        key, view = cache.popitem()
        assert key not in cache
        assert len(view) >= 0
        cache.clear()
        assert len(cache) == 0
        with pytest.raises(KeyError):
            cache.popitem()
        with pytest.raises(TypeError):
            cache[1.5] = b"x"  # type: ignore[index]
        with pytest.raises(TypeError):
            cache["k"] = "text"
        assert cache.get(1.5) is None  # type: ignore[call-overload]
        with pytest.raises((pgalloc.SharingError, pgalloc.ForkedError)):
            cache.serve("never")
        assert "values" in repr(cache)
        cache["last"] = b"value"
        cache.close()
        assert cache.closed
        with pytest.raises(ClosedError):
            cache.get("last")

    with Cache("64M", policy="lru") as cache:
        others(cache, use)
        assert bytes(cache["last"]) == b"value"
        testing.verify_cache(cache)


def test_what_others_hold_stays_what_it_is(others: Any) -> None:
    with Cache("1M") as cache:
        read, write = os.pipe()
        go, done = os.pipe()
        for key in range(50):
            cache[key] = stamped(key, 0, 200 if key % 2 else 5000)

        def use(other: Cache) -> None:
            views = [(key, other[key]) for key in range(50)]
            os.write(write, b"r")
            os.read(go, 1)
            assert all(is_stamped(view, key) for key, view in views)
            assert all(bytes(view).startswith(b"%d/0" % key) for key, view in views)

        def change() -> None:
            os.read(read, 1)
            for number in range(1, 30):
                for key in range(50):
                    cache[key] = stamped(key, number, 200 if key % 2 else 5000)
            with testing.ManualPressure() as pressure:
                pressure.demand(1 << 30)
            cache.clear()
            for key in range(200):
                cache["new", key] = stamped(("new", key), 0, 1000)
            os.write(done, b"g")

        thread = threading.Thread(target=change)
        thread.start()
        others(cache, use)
        thread.join()
        for fd in (read, write, go, done):
            os.close(fd)
        # What was held goes back once its process has ended.
        cache.clear()

        def is_empty() -> bool:
            cache["k"] = b"v"  # those who come for memory look
            return sum(s.end - s.start for s in cache.file.segments() if s.refs) <= 2 * PAGE

        eventually(is_empty)
        testing.verify_cache(cache)


WORKER = """
import os, random, sys
import pgalloc
sys.path.insert(0, sys.argv[2])
from test_cache_processes import is_stamped, stamped
cache = pgalloc.Cache.connect(sys.argv[1])
rng = random.Random(int(sys.argv[3]))
number = 0
print("ready", flush=True)
while True:
    number += 1
    key = rng.randrange(60)
    act = rng.randrange(10)
    if act < 5:
        cache.put(key, stamped(key, number, rng.choice([20, 500, 3000, 5000, 70_000])), tag=key % 3)
    elif act < 9:
        view = cache.get(key)
        if view is not None and not is_stamped(view, key):
            print("wrong", key, bytes(view)[:40], flush=True)
            sys.exit(1)
    else:
        view = cache.pop(key, None)
        assert view is None or is_stamped(view, key)
"""


@contextmanager
def worker(path: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(path), str(Path(__file__).parent), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_workers_that_are_killed_while_they_write(tmp_path: Path) -> None:
    path = tmp_path / "s"
    rng = random.Random(7)
    with Cache("4M") as cache, cache.serve(path):
        for kill in range(12):
            with worker(path, kill) as one, worker(path, kill + 100) as other:
                for process in (one, other):
                    assert process.stdout is not None
                    assert process.stdout.readline() == "ready\n"
                until = time.monotonic() + rng.uniform(0.01, 0.1)
                while time.monotonic() < until:  # time: how long they are let write
                    for key in range(60):
                        view = cache.get(key)
                        assert view is None or is_stamped(view, key)
                    key = rng.randrange(60)
                    cache[key] = stamped(key, 0, rng.choice([20, 5000]))
                one.kill()
                other.kill()
                assert "wrong" not in (one.stdout.read() if one.stdout else "")
            testing.verify_cache(cache)
            assert all(is_stamped(view, key) for key, view in cache.items())
        del view
        cache.clear()

        def is_empty() -> bool:
            cache["k"] = b"v"
            return sum(s.end - s.start for s in cache.file.segments() if s.refs) <= 2 * PAGE

        eventually(is_empty)


HOLDS_ITS_GIL = """
import ctypes, sys, pgalloc
cache = pgalloc.Cache("8M")
server = cache.serve(sys.argv[1])
print("ready", flush=True)
ctypes.PyDLL(None).pause()
"""


def test_an_owner_that_holds_its_gil_takes_what_others_put(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-c", HOLDS_ITS_GIL, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        with Cache.connect(path) as one, Cache.connect(path) as other:
            for key, length in enumerate(LENGTHS):
                one[key] = stamped(key, 1, length)
            for key, length in enumerate(LENGTHS):
                assert bytes(other[key]) == stamped(key, 1, length)
            assert one.incr("n", initial=0) == 1
            assert other.incr("n") == 2
            os.kill(owner.pid, signal.SIGSTOP)
            assert is_stamped(other[3], 3)
            os.kill(owner.pid, signal.SIGCONT)
            view = other[5]
            owner.kill()
            owner.wait()
            assert is_stamped(view, 5)
            assert is_stamped(one[4], 4)
            for write in (lambda: one.put(1, b"x"), lambda: one.pop(1), one.clear):
                with pytest.raises(pgalloc.OwnerGoneError):
                    write()


def _count(path: str, times: int) -> list[int]:
    with Cache.connect(path) as cache:
        return [cache.incr("n", initial=0) for _ in range(times)]


def test_counts_of_several_processes_are_all_different(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Cache("1M") as cache, cache.serve(path):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.apply_async(_count, (path, 500)) for _ in range(4)]
            own = [cache.incr("n", initial=0) for _ in range(500)]
            counted = [n for result in results for n in result.get(TIMEOUT_S)]
        assert sorted(counted + own) == list(range(1, 2501))
        testing.verify_cache(cache)


def _add(path: str, count: int) -> int:
    with Cache.connect(path) as cache:
        return sum(cache.add(("once", n), b"%d" % os.getpid()) for n in range(count))


def test_a_key_is_added_once(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Cache("8M") as cache, cache.serve(path):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.apply_async(_add, (path, 300)) for _ in range(4)]
            own = sum(cache.add(("once", n), b"owner") for n in range(300))
            assert own + sum(result.get(TIMEOUT_S) for result in results) == 300
        testing.verify_cache(cache)


def test_a_child_of_one_that_connected(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Cache("8M") as cache, cache.serve(path), Cache.connect(path) as other:
        cache["k"] = b"v" * 5000
        cache["small"] = b"small"
        views = [other["k"], other["small"]]

        def use() -> None:
            assert bytes(other["k"]) == b"v" * 5000
            other["child"] = b"wrote"
            assert [bytes(views[0]), bytes(views[1])] == [b"v" * 5000, b"small"]
            os.read(read, 1)
            assert [bytes(views[0]), bytes(views[1])] == [b"v" * 5000, b"small"]
            in_child(lambda: other.put("grandchild", bytes(other["child"])))

        read, write = os.pipe()
        child = threading.Thread(target=lambda: in_child(use))
        child.start()
        eventually(lambda: cache.get("child") is not None)
        del views[:]
        del cache["k"], cache["small"]
        for n in range(100):
            cache[n] = b"z" * (5000 if n % 2 else 5)
        os.write(write, b"x")
        child.join()
        assert bytes(cache["grandchild"]) == b"wrote"
        os.close(read)
        os.close(write)


def test_a_file_that_is_restored_lets_no_process_in_before_it_is_whole(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with MemoryFile() as mf, Cache(file=mf, name="c") as cache:
        for key in range(200):
            cache[key] = stamped(key, 0, 70_000)
        mf.save(image)
    caches: list[Cache] = []

    def restore(file: Any, data: bytes) -> None:
        caches.append(Cache.from_snapshot(file, data))

    restored = MemoryFile.restore(image, background=True, hooks={"c": restore})
    path = tmp_path / "s"
    with restored, caches[0] as cache, cache.serve(path), Cache.connect(path) as other:
        assert all(is_stamped(other[key], key) for key in range(200))
