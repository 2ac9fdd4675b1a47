"""Where images go to and come from: paths, memory, pipes."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgalloc import ClosedError, MemoryFile, SnapshotError
from pgalloc.snapshot.codec import zstd
from snapshot_api.stamps import PromiseBrokenError


def _compressions() -> tuple[str | None, ...]:
    try:
        zstd()
    except SnapshotError:
        return (None,)
    return (None, "zstd")


COMPRESSIONS = _compressions()


def random_options(rng: random.Random) -> dict[str, Any]:
    """Options for a save."""
    return {
        "compression": rng.choice(COMPRESSIONS),
        "exclude_committed_zero_pages": rng.random() < 0.8,
    }


class PlannedError(Exception):
    """What a target raises."""


class FailingTarget(io.RawIOBase):
    """A target that has room for so many blocks."""

    def __init__(self, blocks: int) -> None:
        self._left = blocks

    def write(self, block: Any) -> int:
        """Take it, or raise PlannedError."""
        self._left -= 1
        if self._left < 0:
            raise PlannedError
        return len(block)


def save(file: MemoryFile, path: Path, how: str, **options: Any) -> None:
    """Have the image at a path, by way of ``how``: path, memory, pipe."""
    if how == "path":
        file.save(path, **options)
        return
    if how == "memory":
        target = io.BytesIO()
        file.save(target, **options)
        path.write_bytes(target.getvalue())
        return
    read_end, write_end = os.pipe()
    with path.open("wb") as out, os.fdopen(read_end, "rb", buffering=0) as source:
        reader = threading.Thread(target=_copy, args=(source, out), name="pipe", daemon=True)
        reader.start()
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            file.save(pipe, **options)
        reader.join()


def _copy(source: Any, out: Any) -> None:
    while block := source.read(1 << 16):
        out.write(block)


@contextmanager
def source_of(path: Path, how: str) -> Iterator[Any]:
    """What to restore from, by way of ``how``: path, memory, pipe."""
    if how == "path":
        yield path
    elif how == "memory":
        yield io.BytesIO(path.read_bytes())
    else:
        read_end, write_end = os.pipe()
        feeder = threading.Thread(target=_feed, args=(path, write_end), name="pipe", daemon=True)
        feeder.start()
        try:
            with os.fdopen(read_end, "rb", buffering=0) as pipe:
                yield pipe
        finally:
            feeder.join()


def _feed(path: Path, write_end: int) -> None:
    try:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            rest = memoryview(path.read_bytes())
            while rest:
                rest = rest[pipe.write(rest) :]
    except BrokenPipeError:
        return  # the reader has seen enough


def fail_to_save(file: MemoryFile, rng: random.Random) -> None:
    """Save to a target that fails: what it raises comes out."""
    try:
        file.save(FailingTarget(rng.randrange(3)), **random_options(rng))
    except PlannedError:
        return
    raise PromiseBrokenError("a save to a target that fails has succeeded")


def save_while_closing(file: MemoryFile, path: Path, rng: random.Random) -> str:
    """Close the file at some moment of a save. How that ended."""
    before = path.read_bytes()
    timer = threading.Timer(rng.random() * 0.05, file.close)
    timer.start()
    try:
        if rng.random() < 0.7:
            file.save(io.BytesIO(), **random_options(rng))
        else:
            file.save(path, **random_options(rng))
            before = path.read_bytes()
        outcome = "saves that outran a close"
    except (ClosedError, SnapshotError):
        outcome = "saves ended by a close"
    timer.join()
    if path.read_bytes() != before:
        raise PromiseBrokenError("a save that failed has changed the image")
    return outcome
