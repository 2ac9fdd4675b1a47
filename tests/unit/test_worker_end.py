"""At its end a worker waits until what it sent of its own files is claimed (row L8)."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import owners
import peers
import pytest
from peers import TIMEOUT_S, Peer
from waiting import environment, eventually

from pgalloc import SharingError

METHODS = ["spawn", "fork", "forkserver"]

# What was received keeps its connections until it is let go of, and their threads a moment longer.
pytestmark = pytest.mark.leaks_allowed


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    yield from peers.first()


# --- nothing is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "workers"), [("fork", 200), ("forkserver", 20), ("spawn", 10)])
def test_results_of_pools_whose_workers_end_after_each_task(method: str, workers: int) -> None:
    """Hundreds of results of each kind, of as many owners as time allows."""
    context: Any = multiprocessing.get_context(method)
    numbers = range(200)
    with context.Pool(3, maxtasksperchild=1) as pool:
        results = pool.map(owners.make, numbers, chunksize=len(numbers) // workers)
        pool.close()
        pool.join()
    assert len({pid for pid, *_ in results}) == workers
    for number, own in zip(numbers, results, strict=True):
        owners.check(own, number)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])  # not for fork
def test_results_of_executors_whose_workers_end_after_each_task(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as executor:
        results = list(executor.map(owners.make, range(8)))
    for number, own in enumerate(results):
        owners.check(own, number)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_queue_has_not_sent_yet_when_the_worker_returns(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    numbers = range(300)
    queue = context.Queue()
    child = context.Process(target=owners.put, args=(queue, numbers))
    child.start()
    for number in numbers:
        sent, own = queue.get(timeout=TIMEOUT_S)
        assert sent == number
        owners.check(own, number)
    child.join(TIMEOUT_S)
    assert child.exitcode == 0
    queue.close()
    queue.join_thread()


# --- how long it waits ---------------------------------------------------------------------------


@contextmanager
def _worker(method: str, *what: Any) -> Iterator[tuple[Any, Connection]]:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with ours:
        act, *arguments = what
        child = context.Process(target=act, args=(theirs, *arguments))
        child.start()
        theirs.close()
        try:
            yield child, ours
            child.join(TIMEOUT_S)
            assert child.exitcode is not None, "the worker hangs"
        finally:
            child.kill()
            child.join()


def _receive(pipe: Connection) -> Any:
    assert pipe.poll(TIMEOUT_S), "nothing is sent"
    return pipe.recv()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_has_sent_nothing_ends(method: str) -> None:
    with _worker(method, owners.end_without_sending) as (child, pipe):
        assert _receive(pipe) == ("ends", child.pid)


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_waits_until_its_pages_are_claimed(method: str) -> None:
    """Other threads of it go on meanwhile: the GIL is free."""
    with _worker(method, owners.send_and_end, owners.answer_in_a_thread) as (child, pipe):
        packet = pipe.recv_bytes()
        assert _receive(pipe) == ("ends", child.pid)
        for number in range(100):
            pipe.send(number)
            assert _receive(pipe) == ("answer", number)
        assert child.exitcode is None
        owners.check(pickle.loads(packet), 7)
    assert child.exitcode == 0


def test_a_worker_waits_no_longer_than_it_should() -> None:
    with _worker("fork", owners.send_and_end, owners.wait_no_longer) as (child, pipe):
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
        _pid, late, *_ = _receive(pipe)
        with pytest.raises(SharingError):
            late.view()


def test_what_was_dropped_is_not_awaited() -> None:
    with _worker("fork", owners.send_and_end, owners.drop_all_at_the_end) as (child, _pipe):
        child.join(TIMEOUT_S)
        assert child.exitcode == 0


def test_ctrl_c_ends_the_wait() -> None:
    with _worker("fork", owners.send_and_end, owners.default_sigint) as (child, pipe):
        pipe.recv_bytes()
        assert _receive(pipe) == ("ends", child.pid)
        os.kill(child.pid, signal.SIGINT)
        child.join(TIMEOUT_S)
        assert child.exitcode == 1


def test_a_handler_of_sigterm_ends_the_wait() -> None:
    with _worker("fork", owners.send_and_end, owners.end_at_sigterm) as (child, pipe):
        pipe.recv_bytes()
        assert _receive(pipe) == ("ends", child.pid)
        child.terminate()
        child.join(TIMEOUT_S)
        assert child.exitcode == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_whose_parent_was_killed_ends(method: str) -> None:
    with _worker("spawn", owners.start_and_sleep, method) as (parent, pipe):
        pipe.recv_bytes()
        _ends, pid = _receive(pipe)
        os.kill(parent.pid, signal.SIGKILL)
        parent.join()
        eventually(lambda: not _is_there(pid), "the end of the worker")


def _is_there(pid: int) -> bool:
    """A zombie is not: it has ended, and its new parent may be slow."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


MAIN_PROGRAM = """
import multiprocessing
import owners
from pgalloc.sharing import worker_end

worker_end.WAIT_MAX_S = owners.LONG_S
if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    ours.send(owners.make(7))
    child = multiprocessing.get_context("fork").Process(target=theirs.recv_bytes)
    child.start()
"""


def test_the_main_program_does_not_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN_PROGRAM], env=environment(), timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0
