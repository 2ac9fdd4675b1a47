"""SharedList: built from a stream, in memory once; arrays come back as views."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
from array_kinds import elsewhere, in_pages, same
from conftest import PAGE, stored
from peers import Peer
from waiting import eventually

from pgalloc import MemoryFile, OutOfMemoryError, SharedList
from pgalloc.page_stream import PageStream

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    yield from peers.first()


def resident(kind: str) -> int:
    """Bytes of this process that are in memory: RssAnon are its own."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) << 10


def settle(mf: MemoryFile) -> int:
    """Bytes of the file when all that was let go of is back."""
    mf.wait_for_reclaim()
    return stored(mf)


@pytest.mark.parametrize("nbytes", [MIB, 100, 3 * PAGE + 1, 40 * MIB])
def test_a_stream_is_in_memory_once(mf: MemoryFile, nbytes: int) -> None:
    """At every item, and when it moves to a larger range."""
    total = 160 * MIB if nbytes >= MIB else 4 * MIB
    block = os.urandom(nbytes)
    looks: list[int] = []
    own = resident("RssAnon")

    def items() -> Iterator[bytes]:
        for number in range(total // nbytes):
            if number % max(total // nbytes // 50, 1) == 0:
                looks.append(stored(mf) + max(resident("RssAnon") - own, 0))
            yield block

    result = SharedList(items(), file=mf)
    assert bytes(result[-1]) == block
    assert settle(mf) == result.nbytes
    assert max(looks) <= 1.1 * result.nbytes + 2 * MIB
    assert len(result) == total // nbytes
    if nbytes > 100:
        assert result.nbytes <= 1.01 * total + 2 * PAGE
    del result
    assert settle(mf) == 0


def test_contents_survive_each_move(mf: MemoryFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgalloc.page_stream._FIRST", PAGE)
    monkeypatch.setattr("pgalloc.page_stream._GATHERED", 100)
    monkeypatch.setattr("pgalloc.page_stream._MOVED", 2 * PAGE)
    wanted = [os.urandom(n % 517) for n in range(2000)]
    items = SharedList(iter(wanted), file=mf)
    assert [bytes(item) for item in items] == wanted
    mf.wait_for_reclaim()
    (segment,) = mf.segments()
    assert (segment.end - segment.start, segment.refs) == (items.nbytes, 1)


def test_a_file_with_little_room_is_used_up() -> None:
    with MemoryFile(max_allocatable_bytes=64 * PAGE) as mf:
        items = SharedList((b"x" * PAGE for _ in range(20)), file=mf)
        assert [len(item) for item in items] == [PAGE] * 20
        del items
        with pytest.raises(OutOfMemoryError):
            SharedList((b"x" * PAGE for _ in range(80)), file=mf)
        mf.wait_for_reclaim()
        assert mf.segments() == []


def test_an_iterable_that_fails_leaves_nothing(mf: MemoryFile) -> None:
    def items() -> Iterator[Any]:
        yield b"x" * MIB
        yield np.zeros(MIB)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SharedList(items(), file=mf)
    for unpicklable in (lambda: 1, mf.allocate(PAGE), (part for part in ())):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            SharedList([b"x" * MIB, unpicklable], file=mf)
    del unpicklable
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_items_of_all_kinds(mf: MemoryFile) -> None:
    raw = [
        b"",
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"abcdef")[::2],
        memoryview(b"q" * MIB),
    ]
    objects = [None, 7, "text", {"a": [1]}, np.float64(3), np.dtype("i4"), (), "x" * MIB]
    items = SharedList(itertools.chain(raw, objects), file=mf)
    assert len(items) == 13
    for result, item in zip(items, raw, strict=False):
        assert isinstance(result, memoryview)
        assert result.readonly
        assert bytes(result) == bytes(item)
    assert items[len(raw) :] == objects
    assert items[-1] == "x" * MIB
    assert items[1:3] == [b"bytes", b"bytearray"]
    assert 7 in items
    for index in (13, -14):
        with pytest.raises(IndexError):
            items[index]
    assert list(SharedList([], file=mf)) == []


def test_arrays_come_back_as_views(mf: MemoryFile, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.arange(12.0).reshape(4, 3)
    kinds = {
        **in_pages(mf),
        "ordinary": a,
        "Fortran's": np.asfortranarray(a),
        "sliced": a[1:, ::-1],
        "large": np.arange(MIB),
        "text of nothing": np.zeros(3, "S0"),
        "one byte": np.ones(1, np.uint8),
    }
    items = SharedList([b"x", *kinds.values()], file=mf)
    assert items[0] == b"x"
    assert same(items[1], kinds["whole"])
    monkeypatch.setattr(pickle, "loads", None)  # nothing is unpickled from here on
    for result, (name, array) in zip(items[1:], kinds.items(), strict=True):
        assert type(result) is np.ndarray, name
        assert same(result, array), name
        assert not result.flags.writeable, name
        assert not result.flags.owndata, name
        assert result.flags.aligned, name
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        assert result.flags.f_contiguous or not fortran, name
    kept = items[1:]
    items.release()
    mf.close()
    assert same(kept[0], kinds["whole"])


def test_arrays_that_are_more_than_elements_are_pickled(mf: MemoryFile) -> None:
    others = {name: value for name, value in elsewhere().items() if "ordinary" not in name}
    for result, (name, array) in zip(
        SharedList(others.values(), file=mf), others.items(), strict=True
    ):
        assert type(result) is type(array), name
        assert same(result, array), name


def test_another_process_reads_the_same_pages(mf: MemoryFile, spawned: Peer) -> None:
    items = SharedList([np.arange(1000), b"raw", {"an": "object"}], file=mf)
    spawned.do(peers.keep, "items", items)
    code = "x = kept['items']; result = (int(x[0].sum()), bytes(x[1]), x[2], x[0].flags.writeable)"
    assert spawned.do(peers.run, code) == (499500, b"raw", {"an": "object"}, False)
    assert same(spawned.do(peers.run, "result = kept['items'][0]"), np.arange(1000))
    spawned.do(peers.drop, "items")
    del items
    eventually(lambda: not mf.leases())


def test_a_page_stream_by_itself(mf: MemoryFile) -> None:
    one, other = PageStream(mf), PageStream(mf)
    assert one.write(b"head") == 4
    assert one.align(64) == 64
    assert one.align(64) == 64
    assert other.write(np.arange(MIB).view(np.uint8)) == 8 * MIB
    one.move(other)
    assert (one.tell(), other.tell()) == (64 + 8 * MIB, 0)
    one.move(PageStream(mf))
    with one.finish(b"HEAD") as pages:
        assert bytes(pages.view()[:64]) == b"HEAD" + bytes(60)
        assert np.array_equal(np.frombuffer(pages, np.int64)[8 : 8 + MIB], np.arange(MIB))
        assert pages.nbytes == 8 * MIB + PAGE
    mf.wait_for_reclaim()
    assert mf.segments() == []
