"""Store 64 KiB values and read them back, whole: what caches and stores are used for.

pgalloc's part is done by a dictionary of Allocations. The stores on disk (diskcache, lmdb) do more,
since what they hold outlives the process; they are here because they are what people reach for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

import cachetools
import diskcache
import lmdb

import pgalloc
from benchmarks.measure import KIB, Case, Sample, seconds_of
from benchmarks.shared import buffer_of, discard

_VALUES = 1_000
_SIZE = 64 * KIB
_VALUE = bytes(range(256)) * (_SIZE // 256)


def _sample(
    implementation: str, store: Callable[[int], None], read: Callable[[int], bytes]
) -> Sample:
    def work() -> None:
        for key in range(_VALUES):
            store(key)
        for key in range(_VALUES):
            if read(key) != _VALUE:
                raise RuntimeError(f"{implementation} lost a value")

    return Sample("kv", implementation, _VALUES, seconds_of(work), _SIZE)


def _python() -> Sample:
    with pgalloc.MemoryFile() as file:
        values: dict[int, pgalloc.Allocation] = {}

        def store(key: int) -> None:
            values[key] = allocation = file.allocate(_SIZE)
            memoryview(allocation)[:] = _VALUE

        return _sample("python", store, lambda key: bytes(values[key]))


def _cachetools() -> Sample:
    cache: cachetools.LRUCache[int, bytes] = cachetools.LRUCache(maxsize=2 * _VALUES)

    def store(key: int) -> None:
        cache[key] = bytes(bytearray(_VALUE))  # a copy, as all the others make one

    return _sample("cachetools.LRUCache", store, lambda key: bytes(bytearray(cache[key])))


def _shared_memory() -> Sample:
    values: dict[int, SharedMemory] = {}

    def store(key: int) -> None:
        values[key] = memory = SharedMemory(create=True, size=_SIZE)
        buffer_of(memory)[:_SIZE] = _VALUE

    try:
        return _sample("shared_memory", store, lambda key: bytes(buffer_of(values[key])[:_SIZE]))
    finally:
        for memory in values.values():
            discard(memory)


def _diskcache() -> Sample:
    with tempfile.TemporaryDirectory() as folder, diskcache.Cache(folder) as cache:

        def store(key: int) -> None:
            cache[key] = _VALUE

        return _sample("diskcache", store, lambda key: bytes(cache[key]))


def _lmdb() -> Sample:
    with (
        tempfile.TemporaryDirectory() as folder,
        lmdb.open(folder, map_size=4 * _VALUES * _SIZE, sync=False) as store_file,
    ):

        def store(key: int) -> None:
            with store_file.begin(write=True) as transaction:
                transaction.put(key.to_bytes(8, "big"), _VALUE)

        def read(key: int) -> bytes:
            with store_file.begin() as transaction:
                return bytes(transaction.get(key.to_bytes(8, "big"), b""))

        return _sample("lmdb", store, read)


CASES = [
    Case("kv", "python", _python),
    Case("kv", "cachetools.LRUCache", _cachetools),
    Case("kv", "shared_memory", _shared_memory),
    Case("kv", "diskcache", _diskcache),
    Case("kv", "lmdb", _lmdb),
]
