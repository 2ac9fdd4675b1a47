"""A hostile owner of a served cache: whatever it answers, and whatever its index says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
from pathlib import Path

import pytest
import raw_protocol
from conftest import PAGE
from false_owner import NAME, Answer, FalseOwner, well
from raw_peer import RawPeer
from unit.test_sharing_false_owner import LIES

import pgalloc
from pgalloc import Cache
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

_INDEX, _ATTACH = 1, 2  # CacheCall, wire.h
_VALUES = {"key": b"v" * 100, "large": b"w" * 9000} | dict.fromkeys(range(20), b"n" * 10)


def _scrambled(index: int, seed: int) -> int:
    """A copy of an index, as a process that means harm might change it."""
    chance = random.Random(seed)
    copy = os.memfd_create("scrambled", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(copy, os.fstat(index).st_size)
    end = 0
    with contextlib.suppress(OSError):  # there is nothing behind this
        while True:
            start = os.lseek(index, end, os.SEEK_DATA)
            end = os.lseek(index, start, os.SEEK_HOLE)
            data = bytearray(os.pread(index, end - start, start))
            for at in range(PAGE if start == 0 else 0, len(data), 8):
                if any(data[at : at + 8]) and chance.random() < 0.3:
                    few = chance.randbytes(chance.randrange(1, 9))
                    data[at : at + 8] = (
                        few.rjust(8, b"\0") if chance.random() < 0.5 else few.ljust(8)
                    )
            os.pwrite(copy, data, start)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.fcntl(index, fcntl.F_GET_SEALS))
    return copy


class _FalseCacheOwner(FalseOwner):
    """It has the answers of a true cache to what attaches, but for a lie, or lies in the index."""

    def __init__(self, path: Path, lies: dict[int, Answer], seed: int | None = None) -> None:
        self._lies = lies
        self._true: dict[int, tuple[bytes, list[int]]] = {}
        self._kept = contextlib.ExitStack()
        cache = self._kept.enter_context(Cache("1M"))
        cache.update(_VALUES)
        self._kept.enter_context(cache.serve(f"{path}.true"))
        peer = RawPeer.greeted(os.fsencode(f"{path}.true"), own=True)
        self._kept.callback(peer.close)
        for call in (_INDEX, _ATTACH):
            answer = peer.ask(Op.CACHE, struct.pack("<BQ", call, 0))
            assert answer is not None
            assert answer.status == 0
            self._true[call] = answer.payload, answer.descriptors
        if seed is not None:
            descriptors = self._true[_INDEX][1]
            descriptors.append(_scrambled(descriptors[0], seed))
            os.close(descriptors.pop(0))
        super().__init__(path, {Op.SERVED: well(protocol.SERVED.pack(NAME, True))})

    def answer_all(self, connection: socket.socket) -> None:
        while packet := connection.recv(raw_protocol.PACKET_MAX):
            kind, number, payload = raw_protocol.unpack(packet)
            if number == 0:
                continue
            call = payload[0] if kind == Op.CACHE else 0
            if call in self._true and call not in self._lies:
                true, descriptors = self._true[call]
                socket.send_fds(connection, [raw_protocol.pack(0, number, true)], descriptors)
                continue
            answer = self._lies.get(call, well(b"\xff" * 9)) if call else self._answers[Op(kind)]
            reply = answer(number)
            if reply is None or not self.send(connection, reply):
                return

    def close(self) -> None:
        super().close()
        self._kept.close()
        for _, descriptors in self._true.values():
            for descriptor in descriptors:
                os.close(descriptor)


def _use(path: Path) -> None:
    """All that a reader finds by itself, and what it asks the owner for."""
    with Cache.connect(path, timeout=5) as cache:
        for key in [*_VALUES, "none"]:
            with contextlib.suppress(pgalloc.Error, OSError):
                cache.get_bytes(key)
                assert key in cache or key not in cache
        for use in (
            lambda: list(cache.items()),
            lambda: cache.put("new", b"x"),
            lambda: cache.put("new", bytes(100_000)),
            lambda: cache.add("new", b"x"),
            lambda: cache.incr("number", initial=1),
            lambda: cache.touch("key"),
            lambda: cache.pop("key", None),
            lambda: cache.popitem(),
            lambda: cache.evict(PAGE),
            lambda: cache.evict_tag("tag"),
            lambda: cache.stats(),
            lambda: cache.clear(),
        ):
            with contextlib.suppress(pgalloc.Error, OSError, KeyError, ValueError):
                use()


def test_an_honest_owner_is_believed(tmp_path: Path) -> None:
    """The test of the tests: without a lie all keys are there, of values whose pages are zeros."""
    with _FalseCacheOwner(tmp_path / "c", {}), Cache.connect(tmp_path / "c", timeout=5) as cache:
        assert set(cache) == set(_VALUES)
        assert cache.get_bytes("key") == bytes(100)


@pytest.mark.parametrize("lie", [*LIES.values(), well(bytes(8), 1), well(bytes(17), 1)])
@pytest.mark.parametrize("call", range(1, 16))
def test_a_false_answer(tmp_path: Path, call: int, lie: Answer) -> None:
    with (
        _FalseCacheOwner(tmp_path / "c", {call: lie}),
        contextlib.suppress(pgalloc.Error, OSError),
    ):
        _use(tmp_path / "c")


@pytest.mark.parametrize("seed", range(40))
def test_an_index_full_of_lies(tmp_path: Path, seed: int) -> None:
    with _FalseCacheOwner(tmp_path / "c", {}, seed), contextlib.suppress(pgalloc.Error, OSError):
        _use(tmp_path / "c")
