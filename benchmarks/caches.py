"""Get and put in caches of 1 KiB, 64 KiB and 4 MiB values, by one thread and by four.

A get reads one byte of each page of the value; whether it was copied before is the cache's affair.
What is put is a bytearray that is used again, so that every cache has to keep a copy. The stores on
disk (diskcache, lmdb) do more, since what they hold outlives the process.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import cachetools
import diskcache
import lmdb
import numpy as np

import pgalloc
from benchmarks.measure import GIB, KIB, MIB, Case, Sample, seconds_of

Put = Callable[[int, bytearray], Any]
Get = Callable[[int], Any]


@dataclass(frozen=True)
class _Size:
    name: str
    nbytes: int
    values: int
    ops: int


_SIZES = (
    _Size("1k", KIB, 2_000, 8_000),
    _Size("64k", 64 * KIB, 500, 2_000),
    _Size("4m", 4 * MIB, 16, 48),
)


@contextmanager
def _pgalloc(size: _Size) -> Iterator[tuple[Put, Get]]:
    with pgalloc.Cache(GIB) as cache:
        yield cache.__setitem__, cache.__getitem__


@contextmanager
def _cachetools(size: _Size) -> Iterator[tuple[Put, Get]]:
    cache: cachetools.LRUCache[int, bytes] = cachetools.LRUCache(maxsize=GIB, getsizeof=len)
    lock = threading.Lock()

    def put(key: int, data: bytearray) -> None:
        with lock:
            cache[key] = bytes(data)

    def get(key: int) -> bytes:
        with lock:
            return cache[key]

    yield put, get


@contextmanager
def _diskcache(size: _Size) -> Iterator[tuple[Put, Get]]:
    with tempfile.TemporaryDirectory() as folder, diskcache.Cache(folder) as cache:
        yield lambda key, data: cache.set(key, bytes(data)), cache.__getitem__


@contextmanager
def _lmdb(size: _Size) -> Iterator[tuple[Put, Get]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        lmdb.open(folder, map_size=GIB, sync=False) as store,
    ):

        def put(key: int, data: bytearray) -> None:
            with store.begin(write=True) as transaction:
                transaction.put(key.to_bytes(4, "big"), data)

        def get(key: int) -> bytes | None:
            with store.begin() as transaction:
                return transaction.get(key.to_bytes(4, "big"))

        yield put, get


_CACHES: dict[str, Callable[[_Size], AbstractContextManager[tuple[Put, Get]]]] = {
    "python": _pgalloc,
    "cachetools.LRUCache": _cachetools,
    "diskcache": _diskcache,
    "lmdb": _lmdb,
}


def _sample(action: str, name: str, size: _Size, threads: int) -> Sample:
    sources = [bytearray(bytes([number])) * size.nbytes for number in range(threads)]
    with _CACHES[name](size) as (put, get):
        for key in range(size.values):
            put(key, sources[0])

        def work(number: int) -> None:
            for op in range(number, size.ops, threads):
                key = op * 7 % size.values
                if action == "put":
                    put(key, sources[number])
                else:
                    np.frombuffer(get(key), dtype=np.uint8)[:: pgalloc.PAGE_SIZE].sum()

        def all_threads() -> None:
            running = [threading.Thread(target=work, args=(n,)) for n in range(1, threads)]
            for thread in running:
                thread.start()
            work(0)
            for thread in running:
                thread.join()

        seconds = seconds_of(all_threads)
    suffix = "" if threads == 1 else f"_{threads}t"
    return Sample(f"cache_{action}_{size.name}{suffix}", name, size.ops, seconds, size.nbytes)


def _case(action: str, name: str, size: _Size, threads: int) -> Case:
    suffix = "" if threads == 1 else f"_{threads}t"
    workload = f"cache_{action}_{size.name}{suffix}"
    return Case(workload, name, lambda: _sample(action, name, size, threads))


CASES = [
    _case(action, name, size, threads)
    for size in _SIZES
    for action in ("get", "put")
    for threads in (1, 4)
    for name in _CACHES
]
