"""cached when several ask for the same at once: threads, tasks, event loops, forks, interrupts."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import TIMEOUT_S, Aim, eventually, is_inside, join

from pgalloc import Cache, cached, testing
from pgalloc.cache.flights import Flights


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as made:
        yield made
        testing.verify_cache(made)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def misses(function: Any) -> int:
    count: int = function.cache_info().misses
    return count


def wait_for_misses(function: Any, count: int) -> None:
    eventually(lambda: misses(function) >= count, f"{count} callers that miss")


@pytest.mark.parametrize("result", [memoryview, bytes])
@pytest.mark.parametrize("answer", [b"x" * 100, b"x" * 9000, b"x" * (2 << 20), None])
def test_one_thread_computes(pool: ThreadPoolExecutor, result: Any, answer: Any) -> None:
    calls: list[int] = []
    with Cache("1M") as cache:

        @cached(cache, result=result)
        def f(x: int) -> Any:
            calls.append(x)
            wait_for_misses(f, 8)
            return answer

        got = [future.result(TIMEOUT_S) for future in [pool.submit(f, 1) for _ in range(8)]]
        assert calls == [1]
        assert [None if one is None else bytes(one) for one in got] == [answer] * 8
        if result is memoryview and answer:
            got[0].release()
            assert bytes(got[1]) == answer, "each has its own view"
        del got


def test_all_threads_compute_if_they_do_not_wait(cache: Cache, pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(4, timeout=TIMEOUT_S)

    @cached(cache, wait=False, result=bytes)
    def f(x: int) -> bytes:
        return b"%d" % (together.wait() >= 0)

    assert [future.result(TIMEOUT_S) for future in [pool.submit(f, 1) for _ in range(4)]] == [
        b"1"
    ] * 4


def test_other_keys_do_not_wait(cache: Cache, pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(4, timeout=TIMEOUT_S)
    f = cached(cache, result=bytes)(lambda x: together.wait() >= 0 and b"%d" % x)
    futures = [pool.submit(f, x) for x in range(4)]
    assert [future.result(TIMEOUT_S) for future in futures] == [b"0", b"1", b"2", b"3"]


def test_all_threads_get_the_exception(cache: Cache, pool: ThreadPoolExecutor) -> None:
    calls: list[int] = []

    @cached(cache)
    def f(x: int) -> bytes:
        calls.append(x)
        wait_for_misses(f, 8)
        raise RuntimeError("computed once")

    futures = [pool.submit(f, 1) for _ in range(8)]
    for future in futures:
        with pytest.raises(RuntimeError, match="computed once"):
            future.result(TIMEOUT_S)
    assert calls == [1]
    with pytest.raises(RuntimeError):
        f(1)
    assert calls == [1, 1], "it is not kept"


def test_an_exception_is_not_kept_alive_by_its_flight(cache: Cache) -> None:
    class Big:
        gone = 0

        def __del__(self) -> None:
            Big.gone += 1

    def fail(x: int) -> bytes:
        big = Big()
        raise RuntimeError(len(repr(big)))

    async def fail_async(x: int) -> bytes:
        return fail(x)

    f, g = cached(cache)(fail), cached(cache)(fail_async)
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                f(1)
        assert Big.gone == 3
    finally:
        gc.enable()
    with pytest.raises(RuntimeError):
        asyncio.run(g(1))


class Stopped(BaseException):
    pass


def test_a_leader_that_is_stopped_is_followed_by_another(
    cache: Cache, pool: ThreadPoolExecutor
) -> None:
    calls: list[int] = []

    @cached(cache)
    def f(x: int) -> bytes:
        calls.append(x)
        if len(calls) == 1:
            wait_for_misses(f, 4)
            raise Stopped
        return b"second"

    futures = [pool.submit(f, 1) for _ in range(4)]
    got = [future.exception(TIMEOUT_S) or bytes(future.result()) for future in futures]
    assert sorted(map(str, got)) == ["", *["b'second'"] * 3]
    assert calls == [1, 1]


# --- what would wait for itself ------------------------------------------------------------------


def test_a_deep_recursion(cache: Cache) -> None:
    """Each level takes a few frames of Python's."""

    @cached(cache, result=bytes)
    def count(n: int) -> bytes:
        return b"0" if n == 0 else b"%d" % (int(count(n - 1)) + 1)

    assert count(200) == b"200"
    assert count(300) == b"300"


def test_a_call_from_within(cache: Cache) -> None:
    depth = 0

    def use(x: int) -> bytes:
        nonlocal depth
        depth += 1
        return b"%d" % depth if depth == 3 else bytes(f(x)) + b"%d" % x

    f = cached(cache)(use)
    assert bytes(f(7)) == b"377"
    depth = 0
    fresh = cached(cache)(lambda x: b"ok" if depth else contextvars.Context().run(use_fresh, x))

    def use_fresh(x: int) -> bytes:
        nonlocal depth
        depth = 1
        return bytes(fresh(x))

    assert bytes(fresh(1)) == b"ok", "also in another context"


@pytest.mark.parametrize("count", [2, 3])
def test_threads_that_would_wait_for_each_other(
    cache: Cache, pool: ThreadPoolExecutor, count: int
) -> None:
    """Thread n computes n and asks for n + 1, which another one computes, and so on in a ring."""
    together = threading.Barrier(count, timeout=TIMEOUT_S)
    local = threading.local()

    @cached(cache, key=lambda n, left: n % count)
    def f(n: int, left: int) -> bytes:
        if not getattr(local, "began", False):
            local.began = True
            together.wait()
        return b"" if left == 0 else bytes(f(n + 1, left - 1))

    futures = [pool.submit(f, n, 2 * count) for n in range(count)]
    assert [bytes(future.result(TIMEOUT_S)) for future in futures] == [b""] * count


def test_a_thread_that_asks_for_its_caller(cache: Cache, pool: ThreadPoolExecutor) -> None:
    """Where the context is handed on, as asyncio.to_thread() does."""
    outermost = True

    @cached(cache)
    async def f(x: int) -> bytes:
        nonlocal outermost
        if not outermost:
            return b"inner"
        outermost = False
        inner = await asyncio.gather(f(x), asyncio.to_thread(g, x))
        return b" ".join(map(bytes, inner))

    @cached(cache)
    def g(x: int) -> bytes:
        return bytes(asyncio.run(f(x))) + b" of a thread"  # type: ignore[arg-type]

    assert bytes(asyncio.run(f(1))) == b"inner inner of a thread"


# --- tasks ---------------------------------------------------------------------------------------


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0)  # time: lets others run


def test_one_task_computes(cache: Cache) -> None:
    calls: list[int] = []

    @cached(cache, result=bytes)
    async def f(x: int) -> bytes:
        calls.append(x)
        await until(lambda: misses(f) == 10)
        return b"%d" % x

    async def main() -> list[bytes]:
        return await asyncio.gather(*(f(1) for _ in range(10)))

    assert run(main) == [b"1"] * 10
    assert calls == [1]


def test_all_tasks_get_the_exception(cache: Cache) -> None:
    calls: list[int] = []

    @cached(cache)
    async def f(x: int) -> bytes:
        calls.append(x)
        await until(lambda: misses(f) == 10)
        raise RuntimeError

    async def main() -> list[Any]:
        return await asyncio.gather(*(f(1) for _ in range(10)), return_exceptions=True)

    assert [type(error) for error in run(main)] == [RuntimeError] * 10
    assert calls == [1]


def test_cancelled_tasks_leave_the_others_alone(cache: Cache) -> None:
    calls: list[int] = []

    @cached(cache, result=bytes)
    async def f(x: int) -> bytes:
        calls.append(x)
        await until(lambda: go)
        return b"%d" % len(calls)

    go = False

    async def main() -> Any:
        nonlocal go
        tasks = [asyncio.ensure_future(f(1)) for _ in range(5)]
        await until(lambda: misses(f) == 5)
        tasks[3].cancel()  # one that waits
        tasks[0].cancel()  # the one that computes
        await until(lambda: len(calls) == 2)
        go = True
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *got = run(main)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(got.pop(2), asyncio.CancelledError)
    assert got == [b"2"] * 3
    assert calls == [1, 1]


def test_tasks_of_several_loops(cache: Cache, pool: ThreadPoolExecutor) -> None:
    calls: list[int] = []

    @cached(cache, result=bytes)
    async def f(x: int) -> bytes:
        calls.append(x)
        await until(lambda: misses(f) == 8)
        return b"%d" % x

    async def main() -> list[bytes]:
        return await asyncio.gather(f(1), f(1))

    futures = [pool.submit(run, main) for _ in range(4)]
    assert [future.result(TIMEOUT_S) for future in futures] == [[b"1", b"1"]] * 4
    assert calls == [1]


@pytest.mark.parametrize("end", ["stopped", "closed"])
def test_a_loop_that_ends_keeps_no_other_waiting(
    cache: Cache, pool: ThreadPoolExecutor, end: str
) -> None:
    calls: list[int] = []

    @cached(cache, result=bytes)
    async def f(x: int) -> bytes:
        calls.append(x)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return b"other loop"

    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        task = asyncio.ensure_future(f(1))
        await until(lambda: calls)
        future = pool.submit(asyncio.run, f(1))
        await until(lambda: misses(f) == 2)
        return task, future

    task, future = loop.run_until_complete(begin())
    if end == "closed":
        loop.close()
    assert future.result(TIMEOUT_S) == b"other loop"
    assert asyncio.run(f(1)) == b"other loop"
    if end == "stopped":
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
    else:
        task._log_destroy_pending = False
        del task
        gc.collect()  # its coroutine ends here, in no loop
    assert f.cache_info()[:2] == (1, 2)  # type: ignore[attr-defined]


def test_without_asyncio(cache: Cache) -> None:
    """As trio drives a coroutine: there is no loop that is asyncio's."""

    async def load(x: int) -> bytes:
        return b"%d" % x

    waiting: Awaitable[Any] = cached(cache, result=bytes)(load)(1)
    with pytest.raises(StopIteration) as done:
        waiting.__await__().send(None)  # type: ignore[attr-defined]
    assert done.value.value == b"1"


# --- whatever comes in between -------------------------------------------------------------------


@pytest.mark.leaks_allowed
def test_a_fork_while_another_thread_computes(cache: Cache, pool: ThreadPoolExecutor) -> None:
    go = threading.Event()

    @cached(cache, result=bytes)
    def f(x: int) -> bytes:
        if os.getpid() == parent:
            go.wait(TIMEOUT_S)
        return b"%d" % x

    parent = os.getpid()
    future = pool.submit(f, 1)
    wait_for_misses(f, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(f(1) != b"1")
    go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert future.result(TIMEOUT_S) == b"1"


def test_a_finalizer_asks_for_what_is_computed(cache: Cache) -> None:
    got: list[bytes] = []

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            got.append(bytes(f(1)))

    @cached(cache)
    def f(x: int) -> bytes:
        gc.collect()
        return b"%d" % x

    Garbage()
    assert bytes(f(1)) == b"1"
    assert got == [b"1"]


def test_interrupts_at_random_moments(cache: Cache) -> None:
    """What was interrupted keeps no one waiting, and nothing in the function's tables."""
    rng = random.Random(3)
    interrupts = 0

    def interrupt(*_: object) -> None:
        raise Stopped

    f = cached(cache, result=bytes)(lambda x: b"%d" % x)
    ends = False
    errors: list[BaseException] = []

    def use() -> None:
        number = 0
        try:
            while not ends:
                number += 1
                assert f(number % 50) == b"%d" % (number % 50)
                cache.pop(f.cache_key(number % 50), None)  # type: ignore[attr-defined]
        except BaseException as error:
            errors.append(error)

    before = signal.signal(signal.SIGALRM, interrupt)
    other = threading.Thread(target=use)
    other.start()
    try:
        aim = Aim(lambda: interrupts > 300, "interrupts at random moments")
        while aim.goes_on() and not errors:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 4e-4))
                for number in range(200):
                    assert f(number % 50) == b"%d" % (number % 50)
                    cache.pop(f.cache_key(number % 50), None)  # type: ignore[attr-defined]
            except Stopped:
                interrupts += 1
            finally:
                while True:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        break
                    except Stopped:
                        pass
    finally:
        ends = True
        signal.signal(signal.SIGALRM, before)
    eventually(lambda: not other.is_alive() or is_inside(other, "nothing"), "the other thread")
    join([other])
    assert not errors, errors[0]
    aim.assert_hit()
    assert [f(number) for number in range(50)] == [b"%d" % number for number in range(50)]


def test_flights_leave_nothing(cache: Cache, pool: ThreadPoolExecutor) -> None:
    flights = Flights(lambda key: cache.get(key), lambda key, data, store: data)
    assert len(list(pool.map(lambda n: flights.run(n % 7, lambda: None), range(500)))) == 500
    assert flights._flights == {}


@pytest.mark.leaks_allowed
def test_a_child_that_c_code_forks_while_the_cache_is_used(cache: Cache) -> None:
    """As uWSGI does: no hook of Python's has run. Nothing waits for the parent's thread."""
    cache[1] = b"v"
    f = cached(cache, result=bytes)(lambda x: b"%d" % x)
    assert f(1) == b"1"
    held, go = threading.Event(), threading.Event()

    def use() -> None:
        while not go.is_set():
            cache[2] = bytes(cache[1])
            held.set()

    thread = threading.Thread(target=use)
    thread.start()
    assert held.wait(TIMEOUT_S)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)  # instead of a hang
            assert [f(x) for x in (1, 1, 2)] == [b"1", b"1", b"2"]
            assert bytes(cache[1]) == b"v"
            cache.put(3, b"x")
            cache.put(4, bytes(9000))
            assert len(cache) >= 3
            assert cache.evict_tag("none") == 0
            assert {1, 3, 4} <= set(cache)
            cache.close()
            status = 0
        finally:
            os._exit(status)
    go.set()
    join([thread])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
