"""Workers that send pages of their own files, and end. Spawned interpreters find them here."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import pgalloc
from pgalloc import PAGE_SIZE
from pgalloc.sharing import worker_end

LONG_S = 600.0
"""A worker that waits so long hangs: what the test is about is to end it."""

_files: list[pgalloc.MemoryFile] = []  # of this process

Own = tuple[int, pgalloc.Allocation, Any, pgalloc.Shared[dict[str, Any]]]


def _file() -> pgalloc.MemoryFile:
    if not _files or _files[0]._forked:
        _files[:] = [pgalloc.MemoryFile(capacity=pgalloc.CHUNK_SIZE)]
    return _files[0]


def make(number: int) -> Own:
    """One of each kind, of this process's own files."""
    allocation = _file().allocate(PAGE_SIZE)
    allocation.view()[:4] = number.to_bytes(4, "little")
    array = _file().array(1000, np.int64)
    array[:] = number
    shared = pgalloc.share({"number": number, "array": np.full(1000, number)}, file=_file())
    return os.getpid(), allocation, array, shared


def check(own: Own, number: int) -> None:
    """It has arrived as make() has made it, and its owner is not needed."""
    _pid, allocation, array, shared = own
    assert bytes(allocation.view()[:4]) == number.to_bytes(4, "little")
    assert isinstance(array, pgalloc.sharing.arrays.SharedArray)
    assert (np.asarray(array) == number).all()
    found = shared.get()
    assert found["number"] == number
    assert (found["array"] == number).all()


def put(queue: Any, numbers: range) -> None:
    for number in numbers:
        queue.put((number, make(number)))


# --- one process each ----------------------------------------------------------------------------


def _tell_when_ending(pipe: Connection) -> None:
    """Just before the wait: a finalizer of a higher priority comes first."""
    told = worker_end._AFTER_QUEUES + 1
    news = ("ends", os.getpid())
    multiprocessing.util.Finalize(None, pipe.send, args=(news,), exitpriority=told)


def send_and_end(pipe: Connection, prepare: Callable[[Connection], None] | None = None) -> None:
    """Waits long, unless something ends it."""
    worker_end.WAIT_MAX_S = LONG_S
    if prepare is not None:
        prepare(pipe)
    pipe.send(make(7))
    _tell_when_ending(pipe)


def end_without_sending(pipe: Connection) -> None:
    worker_end.WAIT_MAX_S = LONG_S
    make(7)
    _tell_when_ending(pipe)


def wait_no_longer(_pipe: Connection) -> None:
    worker_end.WAIT_MAX_S = 0.0


def drop_all_at_the_end(_pipe: Connection) -> None:
    drop = worker_end._AFTER_QUEUES + 2
    multiprocessing.util.Finalize(None, _drop_all, exitpriority=drop)


def _drop_all() -> None:
    _file().drop_unclaimed()


def answer_in_a_thread(pipe: Connection) -> None:
    def answer() -> None:
        while True:
            pipe.send(("answer", pipe.recv()))

    threading.Thread(target=answer, daemon=True).start()


def end_at_sigterm(_pipe: Connection) -> None:
    def end(_number: int, _frame: Any) -> None:
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, end)


def default_sigint(_pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_and_sleep(pipe: Connection, method: str) -> None:
    """A parent whose child ends, and waits; neither claims."""
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=send_and_end, args=(pipe,))
    child.start()
    signal.pause()
