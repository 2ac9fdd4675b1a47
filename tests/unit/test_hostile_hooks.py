"""Hooks, targets, sources and progress callbacks that turn on the save or restore they are part of.

Whatever they do, the call ends, with a typed error or with theirs, and nothing is left behind.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE
from hostile_zoo import EvictLater, UserError
from snapshots import contents, files_in, image_of

import pgalloc
from pgalloc import (
    ClosedError,
    DelayedEviction,
    EvictableRange,
    FileRange,
    MemoryFile,
    OptionError,
    SnapshotError,
    testing,
)

SPANS = 5  # extents, so that there is much to wait for on both sides

compressions = pytest.mark.parametrize("compression", [None, "zstd"])


@pytest.fixture
def mf() -> Iterator[MemoryFile]:
    with MemoryFile(delayed_eviction=DelayedEviction.MANUAL) as made:
        range_ = made.allocate_range(SPANS << 20)
        view = made.map_range(range_)
        for span in range(SPANS):
            for page in range(200):
                at = (span << 20) + page * PAGE
                view[at : at + PAGE] = bytes([span + 1, page]) * (PAGE // 2)
        yield made
        if not made.closed:
            testing.verify(made)


class Target(io.BytesIO):
    """Does something at write number `at`."""

    def __init__(self, act: Callable[[], Any], at: int = 1) -> None:
        super().__init__()
        self.act, self.left = act, at

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left == 0:
            self.act()
        return super().write(data)


class Source(io.BytesIO):
    """Does something at read number `at`."""

    def __init__(self, data: bytes, act: Callable[[], Any], at: int) -> None:
        super().__init__(data)
        self.act, self.left = act, at

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left == 0:
            self.act()
        return super().read(size)


def fail() -> None:
    raise UserError


def interrupt() -> None:
    raise KeyboardInterrupt


# --- saving --------------------------------------------------------------------------------------


@compressions
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_target_that_raises(
    mf: MemoryFile, act: Callable[[], None], at: int, compression: str | None
) -> None:
    with pytest.raises((UserError, KeyboardInterrupt)):
        mf.save(Target(act, at), compression=compression)
    mf.save(io.BytesIO(), compression=compression)


@compressions
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_target_that_closes_the_file(mf: MemoryFile, at: int, compression: str | None) -> None:
    target = Target(mf.close, at)
    try:
        mf.save(target, compression=compression)
    except ClosedError:
        pass
    else:  # everything had been read
        pgalloc.verify_image(io.BytesIO(target.getvalue()))
    assert mf.closed


@compressions
def test_a_target_that_uses_the_file(mf: MemoryFile, compression: str | None) -> None:
    inner: list[bytes] = []

    def use() -> None:
        inner.append(image_of(mf, compression=compression))
        with mf.allocate(100 * PAGE) as a:
            a.view()[:] = b"u" * (100 * PAGE)
        mf.update_usage()
        assert mf.wait_for_reclaim(20)

    target = Target(use, 2)
    mf.save(target, compression=compression)
    assert target.getvalue() == inner[0]


@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_save_hook_that_raises(mf: MemoryFile, tmp_path: Path, act: Callable[[], None]) -> None:
    (tmp_path / "image").write_bytes(b"old")
    mf.save_hook("h", save=act)  # type: ignore[arg-type]
    with pytest.raises((UserError, KeyboardInterrupt)):
        mf.save(tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == b"old"
    assert files_in(tmp_path) == {"image"}


def test_a_save_hook_that_closes_the_file(mf: MemoryFile, tmp_path: Path) -> None:
    mf.save_hook("h", save=lambda: mf.close() or b"")  # type: ignore[func-returns-value]
    with pytest.raises(ClosedError):
        mf.save(tmp_path / "image")
    assert files_in(tmp_path) == set()


def test_a_save_hook_that_makes_saving_impossible(mf: MemoryFile) -> None:
    user = EvictLater()

    def mark() -> bytes:
        mf.mark_evictable(user, EvictableRange(0, 1))
        return b""

    mf.save_hook("h", save=mark)
    with pytest.raises(SnapshotError, match="evict"):
        mf.save(io.BytesIO())


def test_save_hooks_that_change_the_hooks(mf: MemoryFile) -> None:
    def first() -> bytes:
        mf.remove_save_hook("second")
        mf.save_hook("third", save=lambda: b"3")
        mf.save_hook("second", save=lambda: b"new")
        return b"1"

    mf.save_hook("first", save=first)
    mf.save_hook("second", save=lambda: b"2")
    assert pgalloc.inspect_image(io.BytesIO(image_of(mf))).hooks == {"first": 1, "second": 1}
    with pytest.raises(OptionError):  # by now there is a third
        mf.save(io.BytesIO())
    assert mf.restore_hooks == {}


def test_a_save_hook_that_saves(mf: MemoryFile) -> None:
    inner: list[bytes] = []

    def save() -> bytes:
        mf.remove_save_hook("h")
        inner.append(image_of(mf))
        return inner[0]

    mf.save_hook("h", save=save)
    with MemoryFile.restore(io.BytesIO(image_of(mf)), hooks={"h": lambda f, d: inner.append(d)}):
        assert inner[1] == inner[0]


@pytest.mark.parametrize("payload", [None, 5, "text", [1], object()])
def test_save_hooks_that_return_no_bytes(mf: MemoryFile, payload: Any) -> None:
    mf.save_hook("h", save=lambda: payload)
    with pytest.raises(TypeError, match="'h' returned"):
        mf.save(io.BytesIO())


# --- restoring -----------------------------------------------------------------------------------


@compressions
@pytest.mark.parametrize("at", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_source_that_raises(
    mf: MemoryFile, act: Callable[[], None], at: int, compression: str | None
) -> None:
    image = image_of(mf, compression=compression)
    for call in (MemoryFile.restore, pgalloc.verify_image, pgalloc.inspect_image):
        with pytest.raises((UserError, KeyboardInterrupt)):
            call(Source(image, act, at))


def test_a_source_whose_bytes_change_afterwards(mf: MemoryFile) -> None:
    """What was checked is what is loaded, whatever the source does with its buffer."""
    image = image_of(mf)

    class Changing:
        def __init__(self) -> None:
            self.rest, self.given = memoryview(image), bytearray()

        def read(self, size: int) -> bytearray:
            self.given[:] = b"\xff" * len(self.given)
            self.given = bytearray(self.rest[:size])
            self.rest = self.rest[size:]
            return self.given

    with MemoryFile.restore(Changing()) as restored:
        assert contents(restored) == contents(mf)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("act", ["close", "save", "drop", "free", "raise", "interrupt"])
@compressions
def test_restore_hooks_that_turn_on_the_file(
    mf: MemoryFile, tmp_path: Path, compression: str | None, act: str, background: bool
) -> None:
    mf.save_hook("h", save=lambda: b"")
    mf.save(tmp_path / "image", compression=compression)
    acts: dict[str, Callable[[MemoryFile], Any]] = {
        "close": lambda file: file.close(),
        "save": lambda file: file.save(tmp_path / "again"),
        "drop": lambda file: file.drop_unadopted(),
        "free": lambda file: file.dec_ref(FileRange(0, 2 << 20)),
        "raise": lambda file: fail(),
        "interrupt": lambda file: interrupt(),
    }
    fine = act in ("save", "drop", "free")
    try:
        restored = MemoryFile.restore(
            tmp_path / "image", background=background, hooks={"h": lambda f, data: acts[act](f)}
        )
    except (ClosedError, UserError, KeyboardInterrupt):
        assert not fine
        return
    assert fine
    with restored:
        assert restored.wait_loaded(20)
        assert restored.wait_for_reclaim(20)
        if act == "save":
            assert contents(restored) == contents(mf)
            assert (tmp_path / "again").stat().st_size > SPANS * 200 * PAGE or compression
        testing.verify(restored)


@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_progress_callback_that_raises(
    mf: MemoryFile, tmp_path: Path, act: Callable[[], None]
) -> None:
    mf.save(tmp_path / "image")
    for source in (tmp_path / "image", io.BytesIO(image_of(mf))):
        with pytest.raises((UserError, KeyboardInterrupt)):
            pgalloc.verify_image(source, progress=lambda done, total: act())


def test_progress_that_takes_the_image_away(mf: MemoryFile, tmp_path: Path) -> None:
    mf.save(tmp_path / "image")

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "image", total // 2)

    with pytest.raises(SnapshotError, match="shorter"):
        pgalloc.verify_image(tmp_path / "image", progress=cut)


def test_a_path_that_changes_the_file(mf: MemoryFile, tmp_path: Path) -> None:
    """__fspath__ is called before anything else, and may do what it likes."""

    class Closing:
        def __fspath__(self) -> str:
            mf.close()
            return str(tmp_path / "image")

    with pytest.raises(ClosedError):
        mf.save(Closing())
    assert files_in(tmp_path) == set()
