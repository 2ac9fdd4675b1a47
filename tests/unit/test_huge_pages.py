"""Huge allocations: where they lie, what they commit, how they are given back, whole and in parts.

They are laid out the same whatever the kernel gives, so this needs no huge pages. What does is in
``tests/huge``.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import CHUNK, HUGE, PAGE, stored, update_usage
from waiting import eventually

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    Direction,
    FileRange,
    MemoryFile,
    OptionError,
    OutOfMemoryError,
    testing,
)

MODES = list(AllocationMode)
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


@pytest.fixture
def mf() -> Iterator[MemoryFile]:
    with MemoryFile() as file:
        yield file
        assert file.wait_for_reclaim(20)
        testing.verify(file)


def gone(mf: MemoryFile) -> bool:
    """Whether nothing is left, here and in the kernel."""
    assert mf.wait_for_reclaim(20)
    testing.verify(mf)
    update_usage(mf)
    return (mf.segments(), stored(mf), sum(mf.usage().values())) == ([], 0, 0)


def is_exact(mf: MemoryFile) -> bool:
    """Whether account and kernel agree, once what was freed has gone."""
    assert mf.wait_for_reclaim(20)
    update_usage(mf)
    return sum(mf.usage().values()) == stored(mf)


# --- Where they lie -------------------------------------------------------------------------------


def test_huge_and_small_lie_in_chunks_of_their_own(mf: MemoryFile) -> None:
    small = mf.allocate(PAGE)
    huge = mf.allocate(2 * HUGE, huge=True)
    other = mf.allocate(HUGE)
    another = mf.allocate(HUGE, huge=True)
    assert [a.range.start // CHUNK for a in (small, other)] == [0, 0]
    assert [a.range.start for a in (huge, another)] == [CHUNK, CHUNK + 2 * HUGE]
    assert {s.start // CHUNK: s.huge for s in mf.segments()} == {0: False, 1: True}
    for a in (small, huge, other, another):
        a.release()
    assert gone(mf)


@pytest.mark.parametrize("direction", list(Direction))
def test_both_directions(mf: MemoryFile, direction: Direction) -> None:
    handles = [
        mf.allocate(length, huge=huge, direction=direction)
        for length in (PAGE, HUGE, 3 * HUGE + PAGE)
        for huge in (True, False)
    ]
    for a, is_huge in zip(handles, [False, False, True, False, True, False], strict=True):
        (segment,) = {s.huge for s in mf.segments() if s.refs and s.start <= a.range.start < s.end}
        assert segment == is_huge
        assert not is_huge or a.range.start % HUGE == 0
    for a in handles:
        a.release()
    assert gone(mf)


def test_less_than_a_huge_page_is_small(mf: MemoryFile) -> None:
    with mf.allocate(HUGE - PAGE, huge=True):
        assert [s.huge for s in mf.segments()] == [False]
    assert mf.stats().huge_allocations == 0


def test_a_chunk_changes_sides_when_nothing_is_in_it() -> None:
    with MemoryFile(capacity=16 * HUGE) as mf:  # areas of one huge page
        small = [mf.allocate(HUGE) for _ in range(16)]
        with pytest.raises(OutOfMemoryError):
            mf.allocate(HUGE, huge=True)
        small[3].release()
        small[9].release()
        assert mf.wait_for_reclaim(20)
        huge = [mf.allocate(HUGE, huge=True) for _ in range(2)]
        assert [a.range.start // HUGE for a in huge] == [3, 9]
        assert mf.stats().huge_allocations == 2
        huge[0].release()
        assert mf.wait_for_reclaim(20)
        assert [s.huge for s in mf.segments()] == [False, False, True, False]
        small[3] = mf.allocate(PAGE)
        assert small[3].range.start == 3 * HUGE
        assert [s.huge for s in mf.segments()] == [False, False, True, False]
        testing.verify(mf)


def test_without_a_place_among_huge_pages_it_is_small() -> None:
    with MemoryFile(capacity=32 * HUGE) as mf:  # areas of two huge pages
        pages = [mf.allocate(2 * HUGE) for _ in range(16)]
        halves = [page.slice(0, HUGE) for page in pages]
        for page in pages:
            page.release()
        assert mf.wait_for_reclaim(20)
        a = mf.allocate(HUGE, huge=True)  # no area is empty
        assert a.range.start == HUGE
        assert not any(s.huge for s in mf.segments())
        assert mf.stats().huge_allocations == 0
        assert mf.stats().huge_fallback_bytes == HUGE  # B20
        a.view()[:] = b"a" * HUGE
        a.release()
        for half in halves:
            half.release()
        assert gone(mf)


@pytest.mark.parametrize("choice", ["never", "always", "auto"])
def test_huge_pages_of_a_file(choice: str) -> None:
    with MemoryFile(huge_pages=choice) as mf:  # type: ignore[arg-type]
        kinds = []
        for huge in (True, False):
            with mf.allocate(HUGE, huge=huge):
                kinds.append(mf.segments()[0].huge)
            assert mf.wait_for_reclaim(20)
        with mf.allocate(PAGE, huge=True):
            assert not mf.segments()[0].huge
        expected = {"never": [False, False], "always": [True, True], "auto": [True, False]}
        assert kinds == expected[choice]


def test_wrong_options() -> None:
    with pytest.raises(OptionError, match="huge_pages must be one of"):
        MemoryFile(huge_pages="perhaps")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="huge_pages must be a str"):
        MemoryFile(huge_pages=True)  # type: ignore[arg-type]
    with MemoryFile() as mf:
        for wrong in (1, "yes", 0.0):
            with pytest.raises(TypeError, match="huge must be a bool or None"):
                mf.allocate(HUGE, huge=wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="huge must be a bool or None"):
                mf.allocate_range(HUGE, huge=wrong)  # type: ignore[arg-type]


def test_files_on_disk_and_files_of_zeroing_have_small_pages_only(tmp_path: Path) -> None:
    for options in ({"backing": tmp_path / "pages"}, {"manual_zeroing": True}):
        with MemoryFile(**options) as mf:  # type: ignore[arg-type]
            a = mf.allocate(2 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
            assert [s.huge for s in mf.segments()] == [False]
            a.release()


# --- What they commit -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [HUGE, HUGE + PAGE, 3 * HUGE - PAGE, 20 * HUGE])
def test_what_is_committed_is_the_length(mf: MemoryFile, length: int, mode: AllocationMode) -> None:
    a = mf.allocate(length, huge=True, mode=mode)
    view = a.view()
    if mode == AllocationMode.ALLOCATE_ONLY:
        assert stored(mf) == 0
        view[:] = b"x" * length
    else:
        assert not np.frombuffer(view, np.uint8).any()
    assert stored(mf) == length
    assert is_exact(mf)
    view.release()
    a.release()
    assert gone(mf)


def test_the_end_of_one_is_not_anothers(mf: MemoryFile) -> None:
    """Of its last huge page it has a part; nothing else is put there."""
    a = mf.allocate(HUGE + PAGE, huge=True)
    b = mf.allocate(HUGE, huge=True)
    c = mf.allocate(PAGE)
    assert b.range.start == a.range.start + 2 * HUGE
    assert c.range.start // CHUNK != a.range.start // CHUNK
    tail = [s for s in mf.segments() if s.refs == 0]
    assert [(s.start, s.end, s.known_committed) for s in tail] == [
        (a.range.end, a.range.start + 2 * HUGE, 0)
    ]
    for handle in (a, b, c):
        handle.release()
    assert gone(mf)


def test_readers_and_writes(mf: MemoryFile) -> None:
    data = random.Random(1).randbytes(2 * HUGE + 3 * PAGE)
    source = memoryview(data)
    at = 0

    def read(buffer: memoryview) -> int:
        nonlocal at
        count = min(len(buffer), 100_000)
        buffer[:count] = source[at : at + count]
        at += count
        return count

    with mf.allocate(len(data), huge=True, reader=read) as a:
        assert bytes(a) == data
    with mf.allocate(len(data), huge=True) as a:
        a._write(5, data[:-5])
        assert bytes(a)[5:] == data[:-5]
        assert is_exact(mf)
    assert gone(mf)


# --- Giving back ----------------------------------------------------------------------------------


def test_parts_go_one_by_one_and_the_huge_page_is_free_as_a_whole(mf: MemoryFile) -> None:
    a = mf.allocate(2 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    start = a.range.start
    kept = a.slice(0, HUGE // 2)
    a.release()
    assert mf.wait_for_reclaim(20)
    assert is_exact(mf)
    assert stored(mf) == HUGE // 2
    assert [(s.start, s.end, s.refs) for s in mf.segments()] == [
        (start, start + HUGE // 2, 1),
        (start + HUGE // 2, start + HUGE, 0),
    ]
    # The second huge page is free, the rest of the first is not.
    b = mf.allocate(HUGE, huge=True)
    c = mf.allocate(HUGE, huge=True)
    assert [b.range.start, c.range.start] == [start + HUGE, start + 2 * HUGE]
    kept.release()
    assert mf.wait_for_reclaim(20)
    assert [s.refs for s in mf.segments()] == [1]  # b and c are neighbours
    with mf.allocate(HUGE, huge=True) as again:
        assert again.range.start == start
        assert bytes(again) == bytes(HUGE)
    for handle in (b, c):
        handle.release()
    assert gone(mf)


def test_small_before_huge_and_whole_before_parts(mf: MemoryFile) -> None:
    small = [mf.allocate(PAGE) for _ in range(3)]
    huge = mf.allocate(4 * HUGE, huge=True)
    start = huge.range.start
    kept = huge.slice(HUGE, HUGE + PAGE)
    with testing.reclaim_log(mf) as log:
        with testing.pause_reclaimer(mf):
            huge.release()
            small[0].release()
            small[2].release()
        assert mf.wait_for_reclaim(20)
    assert [(r.start, r.end) for r in log] == [
        (2 * PAGE, 3 * PAGE),
        (0, PAGE),
        (start + 2 * HUGE, start + 4 * HUGE),
        (start, start + HUGE),
        (start + HUGE + PAGE, start + 2 * HUGE),
    ]
    kept.release()
    small[1].release()
    assert gone(mf)


def test_the_maximum_does_not_count_parts_that_have_gone_back() -> None:
    with MemoryFile(max_allocatable_bytes=3 * HUGE) as mf:
        a = mf.allocate(2 * HUGE, huge=True)
        kept = a.slice(0, PAGE)
        a.release()
        assert mf.wait_for_reclaim(20)
        b = mf.allocate(3 * HUGE - PAGE, huge=True)
        assert sum(s.end - s.start for s in mf.segments() if s.refs) == 3 * HUGE
        b.release()
        kept.release()


def test_discarding_and_decommitting(mf: MemoryFile) -> None:
    a = mf.allocate(3 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    part = a.slice(PAGE, HUGE + PAGE)
    part.decommit()
    update_usage(mf)
    assert stored(mf) == 2 * HUGE
    a.release()
    assert mf.wait_for_reclaim(20)
    part.view()[:] = b"y" * HUGE
    assert is_exact(mf)
    assert stored(mf) == HUGE
    part.release()
    assert gone(mf)


def test_recycled_ranges_keep_to_their_length(mf: MemoryFile) -> None:
    populate = AllocationMode.ALLOCATE_AND_WRITE_POPULATE
    with testing.pause_reclaimer(mf):
        mf.allocate(4 * HUGE, huge=True, mode=populate).release()
        a = mf.allocate(HUGE + PAGE, huge=True, mode=populate)
        assert mf.stats().recycled_bytes == HUGE + PAGE
        assert bytes(a) == bytes(HUGE + PAGE)
        testing.verify(mf)
    assert mf.wait_for_reclaim(20)
    assert is_exact(mf)
    assert stored(mf) == HUGE + PAGE
    a.release()
    assert gone(mf)


@pytest.mark.parametrize("seed", range(3))
def test_random_allocations_and_partial_frees(mf: MemoryFile, seed: int) -> None:
    """Stamped pages: none lost, none another's; the account is exact at each stop."""
    generator = random.Random(seed)
    live: list[tuple[Allocation, int]] = []
    for step in range(400):
        if live and (generator.random() < 0.55 or len(live) > 40):
            a, stamp = live.pop(generator.randrange(len(live)))
            pages = np.frombuffer(a.view(readonly=True), np.uint8)[::PAGE]
            assert (pages == stamp).all()
            del pages
            if a.nbytes > PAGE and generator.random() < 0.7:
                cut = generator.randrange(PAGE, a.nbytes, PAGE)
                parts = [a.slice(0, cut), a.slice(cut, a.nbytes)]
                live.append((generator.choice(parts), stamp))
            a.release()
        else:
            length = generator.choice(
                [PAGE, 17 * PAGE, HUGE, HUGE + PAGE, 3 * HUGE, 5 * HUGE - PAGE]
            )
            mode = generator.choice(MODES)
            huge = generator.choice([True, False, None])
            a = mf.allocate(length, mode=mode, huge=huge)
            stamp = generator.randrange(1, 256)
            with a.view() as view:
                np.frombuffer(view, np.uint8)[::PAGE] = stamp
            live.append((a, stamp))
        if step % 20 == 0:
            testing.verify(mf)
        if step % 100 == 99:
            assert mf.wait_for_reclaim(20)
            testing.verify(mf)
            assert is_exact(mf)
            assert stored(mf) == sum(s.end - s.start for s in mf.segments() if s.refs)
    del a, parts
    for handle, _ in live:
        handle.release()
    assert gone(mf)


# --- What is in huge pages ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_b20_h6_huge_or_counted_as_small(mf: MemoryFile, mode: AllocationMode) -> None:
    """Whatever the kernel gives: each whole huge page is one, or was counted."""
    a = mf.allocate(3 * HUGE + PAGE, huge=True, mode=mode)
    if mode == AllocationMode.ALLOCATE_ONLY:
        update_usage(mf)
        assert (mf.huge_usage(), mf.stats().huge_fallback_bytes) == (0, 0)
        a.view()[:] = b"x" * a.nbytes
    update_usage(mf)
    fallen = mf.stats().huge_fallback_bytes
    if mode == AllocationMode.ALLOCATE_ONLY:
        assert fallen == 0  # it is touched by its owner
        assert mf.huge_usage() in range(0, 3 * HUGE + 1, HUGE)
    elif tells_of_huge_pages():
        assert mf.huge_usage() == 3 * HUGE - fallen
    in_huge_pages = mf.huge_usage()
    assert sum(s.huge_bytes for s in mf.segments()) == in_huge_pages
    assert all(s.huge_bytes <= s.known_committed for s in mf.segments())
    assert sum(mf.usage().values()) == a.nbytes
    a.decommit()
    assert mf.huge_usage() == 0
    a.release()
    assert gone(mf)
    assert mf.huge_usage() == 0


def tells_of_huge_pages() -> bool:
    """Whether the kernel has PAGEMAP_SCAN."""
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 7)


def test_b20_small_pages_by_choice_are_not_counted(tmp_path: Path) -> None:
    commit = AllocationMode.ALLOCATE_AND_COMMIT
    for options in ({"backing": tmp_path / "pages"}, {"huge_pages": "never"}, {}):
        with MemoryFile(**options) as mf:  # type: ignore[arg-type]
            mf.allocate(2 * HUGE, huge=bool(options), mode=commit).release()
            update_usage(mf)
            assert (mf.huge_usage(), mf.stats().huge_fallback_bytes) == (0, 0)


def test_h6_without_descriptors_nothing_is_told_and_nothing_fails(mf: MemoryFile) -> None:
    commit = AllocationMode.ALLOCATE_AND_COMMIT
    with testing.FaultPlan("open", errno.EMFILE):
        a = mf.allocate(2 * HUGE, huge=True, mode=commit)
        update_usage(mf)
        assert mf.huge_usage() == 0
    assert mf.stats().huge_fallback_bytes == 0
    assert sum(mf.usage().values()) == 2 * HUGE
    a.release()


def test_a_segment_stays_a_tuple_of_six(mf: MemoryFile) -> None:
    a = mf.allocate(HUGE, huge=True)
    (segment,) = mf.segments()
    assert len(segment) == 6
    assert (segment.huge, segment.huge_bytes) == (True, 0)
    copied = pickle.loads(pickle.dumps(segment))
    assert (copied, copied.huge, copied.huge_bytes) == (segment, True, 0)
    a.release()


# --- Elsewhere ------------------------------------------------------------------------------------


def file_to_save(capacity: int | None) -> tuple[MemoryFile, list[Allocation], list[bytes]]:
    """Huge allocations with and without holes, one used in part, and a small one."""
    mf = MemoryFile(capacity=capacity)
    first = mf.allocate(2 * HUGE + 3 * PAGE, huge=True)
    rest = mf.allocate(3 * HUGE, huge=True)
    small = mf.allocate(3 * PAGE)
    kept = [first, rest.slice(HUGE - PAGE, HUGE + 5 * PAGE), small]
    rest.release()
    first.view()[:HUGE] = random.Random(1).randbytes(HUGE)
    for allocation in (*kept[1:], first.slice(2 * HUGE, 2 * HUGE + 3 * PAGE)):
        view = allocation.view()
        view[0] = view[-1] = 7
    return mf, kept, [bytes(allocation.view()) for allocation in kept]


def layout(mf: MemoryFile) -> list[tuple[int, int, bool]]:
    """What is used, by ranges of one size of pages."""
    used: list[tuple[int, int, bool]] = []
    for s in mf.segments():
        if s.refs and used and used[-1][1:] == (s.start, s.huge):
            used[-1] = (used[-1][0], s.end, s.huge)
        elif s.refs:
            used.append((s.start, s.end, s.huge))
    return used


RESTORES: dict[str, Callable[[Path, Path], MemoryFile]] = {
    "eager": lambda raw, zstd: MemoryFile.restore(raw),
    "background": lambda raw, zstd: MemoryFile.restore(raw, background=True),
    "stream": lambda raw, zstd: MemoryFile.restore(io.BytesIO(raw.read_bytes())),
    "encoded": lambda raw, zstd: MemoryFile.restore(zstd),
    "never": lambda raw, zstd: MemoryFile.restore(raw, huge_pages="never"),
    "larger areas": lambda raw, zstd: MemoryFile.restore(raw),
}


@pytest.mark.parametrize("way", RESTORES)
def test_images_keep_what_is_for_huge_pages(way: str, tmp_path: Path) -> None:
    # Areas of two huge pages come into one chunk.
    mf, kept, expected = file_to_save(32 * HUGE if way == "larger areas" else None)
    with mf:
        for name, compression in (("raw", None), ("zstd", "zstd")):
            mf.save(tmp_path / name, compression=compression)
        before = layout(mf)
        ranges = [allocation.range for allocation in kept]
        info = pgalloc.inspect_image(tmp_path / "raw")
        assert info.version == 2
        assert {(s.start, s.huge) for s in info.segments} == {(s[0], s[2]) for s in before}
        assert before[-1][2] or before[0][2]
        for allocation in kept:
            allocation.release()
    with RESTORES[way](tmp_path / "raw", tmp_path / "zstd") as again:
        testing.verify(again)
        after = layout(again)
        assert [row[:2] for row in after] == [row[:2] for row in before]
        if way not in ("never", "larger areas"):
            assert after == before
        else:
            assert not any(row[2] for row in after)
        handles = [Allocation.adopt(again, each) for each in ranges]
        assert again.wait_loaded(20)
        assert is_exact(again)
        assert again.total_usage() == HUGE + 6 * PAGE
        assert [bytes(handle.view()) for handle in handles] == expected
        assert is_exact(again)
        # The parts of huge pages that are not used are no place for others.
        other = again.allocate(HUGE, huge=True)
        assert other.range.start % HUGE == 0
        testing.verify(again)
        for handle in (*handles, other):
            handle.release()
        assert gone(again)


def test_what_is_not_used_of_a_huge_page_is_not_loaded(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        a = mf.allocate(HUGE, huge=True)
        a.view()[:] = b"x" * HUGE
        start = a.range.start
        parts = [a.slice(0, HUGE // 4), a.slice(HUGE // 2, HUGE)]
        a.release()
        mf.save(tmp_path / "image")
    with testing.without_loaders():
        again = MemoryFile.restore(tmp_path / "image", background=True)
    with again:
        testing.verify(again)
        used = sum(part.nbytes for part in parts)
        assert again.load_progress().total_bytes == used
        for first, last in ((0, HUGE // 4), (HUGE // 2, HUGE)):
            again.dec_ref(FileRange(start + first, start + last))
        assert again.load_progress().dropped_bytes == used
        assert not again.loading
        assert gone(again)


def test_the_rest_of_what_is_recycled_is_given_back_at_once() -> None:
    for _ in range(20):
        with MemoryFile() as mf:
            for _ in range(3):
                mf.allocate(2 * HUGE, huge=True, mode=POPULATE).release()
            a = mf.allocate(HUGE + PAGE, huge=True, mode=POPULATE)
            testing.verify(mf)
            a.release()


def test_images_without_huge_areas_are_of_version_1(tmp_path: Path) -> None:
    with MemoryFile() as mf, mf.allocate(3 * HUGE) as a:
        a.view()[0] = 1
        mf.save(tmp_path / "image")
    assert pgalloc.inspect_image(tmp_path / "image").version == 1


def _use(a: Allocation) -> bytes:
    with a, a.view() as view:
        view[0] = 7
        return bytes(view[:2])


def test_peers_and_children(mf: MemoryFile) -> None:
    a = mf.allocate(HUGE + PAGE, huge=True)
    a.view()[1] = 9
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            assert pool.apply(_use, (a,)) == b"\7\11"
    a.release()
    eventually(lambda: mf.leases() == [])
    assert gone(mf)


@pytest.mark.parametrize("mode", MODES)
def test_a_peer_allocates(mf: MemoryFile, tmp_path: Path, mode: AllocationMode) -> None:
    with mf.serve(tmp_path / "socket"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with pgalloc.connect(tmp_path / "socket") as peer:
                    a = peer.allocate(2 * HUGE + PAGE, huge=True, mode=mode)
                    a.view()[:] = b"p" * a.nbytes
                    a._write(HUGE, b"q" * HUGE)
                    part = a.slice(HUGE, HUGE + PAGE)
                    a.release()
                    assert bytes(part) == b"q" * PAGE
                    part.release()
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        eventually(lambda: mf.leases() == [])
    assert mf.stats().huge_allocations == 1
    assert gone(mf)


def test_a_cache_and_shared_objects_work_with_every_choice() -> None:
    for choice in ("auto", "always", "never"):
        with MemoryFile(huge_pages=choice) as mf:  # type: ignore[arg-type]
            cache = pgalloc.Cache("64M", file=mf)
            for number in range(30):
                cache[number] = bytes([number]) * (2 * HUGE + 5)
            for number, value in cache.items():
                assert value[-1] == number
            array = mf.array_like(np.arange(HUGE // 4))
            assert array.sum() == sum(range(HUGE // 4))
            shared = pgalloc.share(np.ones(HUGE // 8), file=mf)
            assert shared.get().sum() == HUGE // 8
            testing.verify(mf)
