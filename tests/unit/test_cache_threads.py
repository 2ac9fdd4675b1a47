"""Cache between threads, finalizers, signals, forks and the end of the program."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from children import Child
from conftest import PAGE
from held_call import HeldCall
from waiting import TIMEOUT_S, Aim, eventually, join

from pgalloc import Cache, ClosedError, MemoryFile, Policy, testing

POLICIES = list(Policy)


def run_threads(*bodies: Callable[[], object], aim: Aim | None = None) -> None:
    """All of them at once; the first exception is the caller's, and ends the aim."""
    errors: list[BaseException] = []

    def guarded(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)
            if aim is not None:
                aim.give_up()

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    join(threads, 2 * TIMEOUT_S)
    if errors:
        raise errors[0]
    if aim is not None:
        aim.assert_hit()


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def stamped(key: int, number: int, length: int) -> bytes:
    """A value that says whose it is, all over."""
    return (b"%06d:%09d;" % (key, number) * (length // 17 + 1))[: max(length, 17)]


def is_stamped(view: memoryview, key: int) -> bool:
    data = bytes(view)
    return data[:7] == b"%06d:" % key and data == (data[:17] * (len(data) // 17 + 1))[: len(data)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lengths", [(20, 200, 600), (200, 3000, 5000, 40000)])
def test_a_view_has_what_was_put(policy: Policy, lengths: tuple[int, ...]) -> None:
    """Four threads of everything, under constant discards."""
    told: list[Any] = []
    seen = discards = 0  # views; discards while some were held
    aim = Aim(lambda: seen >= 1000 and discards >= 30, "discards while views are held")
    holding = [0] * 4
    keys = 500
    cache = Cache("3M", policy=policy, on_discard=told.append)
    with testing.ManualPressure() as pressure, cache, switching_often():

        def use(seed: int) -> None:
            rng = random.Random(seed)
            nonlocal seen
            held: list[tuple[int, memoryview, bytes]] = []
            number = 0
            while aim.goes_on():
                number += 1
                key = rng.randrange(keys)
                act = rng.random()
                if act < 0.4:
                    cache[key] = stamped(key, number, rng.choice(lengths))
                elif act < 0.9:
                    view = cache.get(key)
                    if view is not None:
                        assert is_stamped(view, key)
                        held.append((key, view, bytes(view)))
                        seen += 1
                elif act < 0.93:
                    view = cache.pop(key, None)
                    assert view is None or is_stamped(view, key)
                elif act < 0.96:
                    view = cache.setdefault(key, stamped(key, number, 30))
                    assert is_stamped(view, key)
                elif act < 0.97:
                    cache.evict(rng.randrange(4 * PAGE))
                elif act < 0.98:
                    pressure.demand(rng.randrange(4) * PAGE)
                else:
                    list(cache)
                if len(held) > 20 or rng.random() < 0.05:
                    assert all(bytes(view) == copy for _, view, copy in held)
                    held.clear()
                holding[seed] = len(held)
            held.clear()

        def discard() -> None:
            nonlocal discards
            due = 0
            while aim.goes_on():
                if seen < due:  # at once again, and there were never a view to be had
                    os.sched_yield()
                elif pressure.demand(8 * PAGE) > 0:
                    discards += any(holding)
                    due = seen + 5

        run_threads(*(lambda seed=seed: use(seed) for seed in range(4)), discard, aim=aim)
        assert cache.stats().discards == len(told) > 0
        testing.verify_cache(cache)


def test_a_value_that_is_looked_at_while_it_is_discarded() -> None:
    """Readers of one value: none may take zeros for it."""
    found = missed = 0
    aim = Aim(lambda: missed >= 500 and found >= 5000, "looks at what is being discarded")
    with Cache(policy="lru") as cache, switching_often():
        for key in range(8):
            cache[key] = b"\xff" * 4 * PAGE

        def read() -> None:
            nonlocal found, missed
            while aim.goes_on():
                for key in range(8):
                    view = cache.get(key)
                    if view is None:
                        missed += 1
                        cache[key] = b"\xff" * 4 * PAGE
                    else:
                        found += 1
                        assert view[0] == view[-1] == 255

        def discard() -> None:
            with testing.ManualPressure() as pressure:
                while aim.goes_on():
                    pressure.demand(8 * PAGE)

        run_threads(read, read, read, discard, aim=aim)
        testing.verify_cache(cache)


def test_a_look_in_the_middle_of_a_discard() -> None:
    """The pages are empty, and no callback has been told yet."""
    seen: list[memoryview | None] = []
    with Cache(policy="lru") as cache, testing.ManualPressure() as pressure:
        cache["k"] = b"\xff" * 4 * PAGE
        with HeldCall("fallocate") as punch:
            discarder = threading.Thread(target=pressure.demand, args=(1 << 40,))
            discarder.start()
            punch.wait()
            readers = [threading.Thread(target=lambda: seen.append(cache.get("k"))) for _ in "ab"]
            for reader in readers:
                reader.start()
            punch.let_go()
            join([discarder, *readers])
        assert seen == [None, None]
        testing.verify_cache(cache)


def test_hits_and_misses_are_exact() -> None:
    """Under writers, too: a look that came too late is not a hit."""
    with Cache() as cache, switching_often():
        for key in range(100):
            cache[key] = b"v" * (100 if key % 2 else 5000)
        got: list[int] = []

        def read(seed: int) -> None:
            rng = random.Random(seed)
            got.append(sum(cache.get(rng.randrange(150)) is not None for _ in range(5000)))

        def write() -> None:
            for i in range(3000):
                cache[i % 100] = b"w" * (100 if i % 2 else 5000)

        readers = [lambda seed=seed: read(seed) for seed in range(4)]
        run_threads(*readers, write)
        stats = cache.stats()
        assert (stats.hits, stats.misses) == (sum(got), 20000 - sum(got))
        assert stats.sets == 3100


def test_pop_and_setdefault_have_one_winner() -> None:
    with Cache() as cache, switching_often():
        for length in (100, 5000):
            cache.update({key: b"v" * length for key in range(300)})  # noqa: C420
            won: list[Any] = []

            def pop() -> None:
                for key in range(300):
                    if cache.pop(key, None) is not None:
                        won.append(key)  # noqa: B023

            run_threads(pop, pop, pop)
            assert sorted(won) == list(range(300))
            seen: list[set[bytes]] = [set() for _ in range(300)]

            def add(name: bytes) -> None:
                for key in range(300):
                    seen[key].add(bytes(cache.setdefault(key, name * length)))  # noqa: B023

            run_threads(*(lambda n=n: add(n) for n in (b"a", b"b", b"c")))
            assert all(len(values) == 1 for values in seen)


def test_closing_while_others_use_it() -> None:
    for round_ in range(10):
        mf = MemoryFile()
        cache = Cache(file=None if round_ % 2 else mf)
        used = [0] * 3

        def use(seed: int) -> None:
            rng = random.Random(seed)
            with pytest.raises(ClosedError):  # noqa: PT012
                while True:
                    key = rng.randrange(50)
                    cache[key] = stamped(key, 1, rng.choice([100, 5000]))  # noqa: B023
                    view = cache.get(rng.randrange(50))  # noqa: B023
                    assert view is None or len(view) >= 17
                    used[seed] += 1  # noqa: B023

        def close() -> None:
            try:
                eventually(lambda: min(used) > 20, "using it")  # noqa: B023
            finally:
                cache.close()  # noqa: B023

        run_threads(*(lambda seed=seed: use(seed) for seed in range(3)), close)
        testing.verify(mf)
        mf.close()


# --- in the middle of a change -------------------------------------------------------------------


class Cycle:
    """Garbage whose finalizer uses the cache."""

    def __init__(self, use: Callable[[], object]) -> None:
        self.use, self.me = use, self

    def __del__(self) -> None:
        self.use()


@pytest.mark.parametrize("policy", POLICIES)
def test_finalizers_use_the_cache_wherever_they_run(policy: Policy) -> None:
    rng = random.Random(1)
    errors: list[BaseException] = []
    ran = 0
    with Cache("2M", policy=policy) as cache:

        def use() -> None:
            nonlocal ran
            ran += 1
            key = rng.randrange(60)
            try:
                act = rng.randrange(10)
                if act < 4:
                    cache.put(key, stamped(key, ran, rng.choice([20, 500, 5000])), tag=key % 3)
                elif act < 6:
                    view = cache.get(key)
                    assert view is None or is_stamped(view, key)
                elif act == 6:
                    cache.pop(key, None)
                elif act == 7:
                    cache.evict(PAGE), cache.evict_tag(1)
                elif act == 8:
                    len(cache), list(cache), cache.stats()
                elif rng.random() < 0.05:
                    cache.clear()
            except BaseException as error:
                errors.append(error)

        before = gc.get_threshold()
        gc.set_threshold(3, 1, 1)
        try:
            for i in range(1500):
                Cycle(use)
                key = rng.randrange(60)
                cache.put(key, stamped(key, i, rng.choice([20, 500, 5000])), tag=key % 3, expire=9)
                view = cache.get(key)
                assert view is None or is_stamped(view, key)
                if i % 5 == 0:
                    cache.pop(rng.randrange(60), None)
                if i % 17 == 0:
                    cache.evict(8 * PAGE)
        finally:
            gc.set_threshold(*before)
        del view
        gc.collect()
        assert not errors, errors[0]
        assert ran > 1000
        testing.verify_cache(cache)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("policy", POLICIES)
def test_interrupts_at_random_moments(policy: Policy) -> None:
    """As KeyboardInterrupt does: nothing is lost, nothing hangs, the tables are right."""
    rng = random.Random(2)
    interrupts = 0

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    told: list[Any] = []
    try:
        with Cache("2M", policy=policy, on_discard=told.append) as cache:
            aim = Aim(lambda: interrupts > 300, "interrupts at random moments")
            with testing.ManualPressure() as pressure:
                while aim.goes_on():
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 8e-4))
                        for _ in range(200):
                            key = rng.randrange(100)
                            data = stamped(key, 0, rng.choice([20, 200, 600, 5000]))
                            cache.put(key, data, tag=key % 3, expire=rng.choice([None, 1e-4, 5]))
                            view = cache.get(rng.randrange(100))
                            cache.pop(rng.randrange(100), None)
                            if rng.random() < 0.1:
                                pressure.demand(10 * PAGE)
                                cache.evict(5 * PAGE)
                                cache.evict_tag(2)
                            if rng.random() < 0.02:
                                cache.popitem()
                    except (Interrupted, KeyError):
                        interrupts += 1
                    finally:
                        while True:
                            try:
                                signal.setitimer(signal.ITIMER_REAL, 0)
                                break
                            except Interrupted:
                                pass
                    view = None
                    testing.verify_cache(cache)
                    for key, view in cache.items():
                        assert is_stamped(view, key)
                    del view
            gc.collect()  # an exception may be in a frame of its own traceback
            known = (
                cache.stats().page_bytes
            )  # first: it lets go of slabs that only garbage had views of
            in_use = sum(s.end - s.start for s in cache.file.segments() if s.refs)
            assert in_use == known, "pages that are not in the cache"
            aim.assert_hit()
    finally:
        signal.signal(signal.SIGALRM, before)


# --- fork, and the end ---------------------------------------------------------------------------


def test_a_forked_child_keeps_small_values_that_share_pages() -> None:
    """Its parent does not put others in their place, once it has let go of them itself."""
    with Cache() as cache:
        for number in range(40):
            cache[number] = bytes([number]) * 1000
        views = [cache[3]]
        ready_read, ready_write = os.pipe()

        def child() -> None:
            os.read(ready_read, 1)
            assert bytes(views[0]) == b"\x03" * 1000

        forked = Child(child)
        del views[0]
        for number in range(40):
            del cache[number]
            cache[number, "new"] = b"n" * 1000
        os.write(ready_write, b"x")
        forked.wait()
        os.close(ready_read)
        os.close(ready_write)
        testing.verify_cache(cache)


@pytest.mark.leaks_allowed
def test_a_forked_child_goes_on_with_its_parents_cache() -> None:
    with Cache() as cache:
        cache["k"] = b"v" * 5000
        view = cache["k"]
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                cache["x"] = b"x" * 100
                cache.get("x")

        thread = threading.Thread(target=use)
        thread.start()
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert bytes(cache["k"]) == b"v" * 5000
                    cache.put(("child", number), b"c" * 5000)
                    assert bytes(cache.pop(("child", number))) == b"c" * 5000
                    cache["child"] = b"%d" % number
                    assert "k" in cache
                    assert "k" in set(cache)
                    assert len(cache) >= 2
                    assert cache.stats().entries >= 2
                    assert bytes(view) == b"v" * 5000
                    with Cache() as own:
                        own["k"] = b"own"
                        assert bytes(own["k"]) == b"own"
                    repr(cache)
                    cache.close()
                    gc.collect()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert bytes(cache["child"]) == b"%d" % number
        stop.set()
        thread.join()
        assert bytes(cache["k"]) == b"v" * 5000
        testing.verify_cache(cache)
        view.release()


def test_thousands_of_caches_leave_nothing() -> None:
    with MemoryFile() as mf:
        for i in range(2000):
            cache = Cache(file=mf, name="again")
            cache[i] = b"v" * (i % 5000)
            if i % 3 == 0:
                cache.close()
            del cache
        gc.collect()
        assert mf.wait_for_reclaim(20)
        assert mf.segments() == []
    for _ in range(50):
        Cache()["k"] = b"v"


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "raise SystemExit(0)",
        "import atexit; atexit.register(lambda: cache.put('z', b'z'))",
        "class E:\n  def __del__(self): cache.get(1); cache[2] = b'x'\ne = E(); e.me = e",
        "threading.Thread(target=forever, daemon=True).start()",
        "view = cache[0]; del cache",
        "os._exit(0)",
    ],
)
def test_the_program_ends_with_a_live_cache(ending: str) -> None:
    code = f"""
import os, threading, pgalloc
from pgalloc import pressure
cache = pgalloc.Cache(name="c", on_discard=print)
for i in range(300):
    cache[i] = b"v" * (100 if i % 2 else 9000)
def forever():
    while True:
        cache[1] = b"x" * 5000; cache.get(1)
pressure.Monitor().subscribe(print)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
