"""Saving: threads, targets, compression."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.errors import OptionError, SnapshotError
from pgalloc.named_errors import About
from pgalloc.raised import is_ours
from pgalloc.snapshot import decoding, targets
from pgalloc.snapshot.codec import Codec, zstd
from pgalloc.snapshot.hooks import Hooks
from pgalloc.snapshot.targets import Target
from pgalloc.snapshot.threads import thread_count
from pgalloc.threads import Thread

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

_RESTORE_ID_LENGTH_MAX = 65536  # as the image format limits it


def save(
    memory_file: MemoryFile,
    target: Any,
    hooks: Hooks,
    *,
    files: Collection[MemoryFile],
    keep_zeros: bool,
    compression: str | None,
    level: int | None,
) -> None:
    """See MemoryFile.save(); ``files``: those whose backing must not be the target."""
    codec = _checked_codec(compression, level)
    name, path = targets.checked(target)
    about = About("save", name)
    with about:
        _check_restore_id(memory_file.restore_id)
        opened = targets.opened(target, path, files)
    try:
        # What the hooks say of unpinned memory must be true of the image, too.
        held = _core.HeldDiscards(memory_file)
        try:
            payloads = hooks.collect()
            decoding.load(memory_file, None, None, ignore_broken=False)
            with about:
                _write(memory_file, opened, payloads, keep_zeros, codec)
        finally:
            held.release()
    finally:
        with about:
            opened.close()


def _write(
    memory_file: MemoryFile,
    target: Target,
    payloads: list[tuple[str, bytes]],
    keep_zeros: bool,
    codec: Codec | None,
) -> None:
    new_file = target.new_file
    restore_id = memory_file.restore_id
    writer = _core.ImageWriter(memory_file, new_file, restore_id, payloads, keep_zeros)
    with _workers(writer, codec) as workers:
        if not workers.count:
            _write_alone(writer, target, codec)
        elif new_file is None:
            while (block := writer.next_block()) is not None:
                target.write(block)
        else:
            writer.wait()
    if workers.failures:
        raise workers.failures[0]
    target.finish()


def _write_alone(writer: _core.ImageWriter, target: Target, codec: Codec | None) -> None:
    """Where no thread is to be had."""
    writer.keep()
    more = True
    while more:
        item = writer.next_item()
        if item is not None:
            writer.finish_item(item, b"" if codec is None else codec.encode(item.raw()))
        more = item is not None
        if target.new_file is None:
            target.write(writer.take_kept())
    writer.wait()


def _checked_codec(compression: str | None, level: int | None) -> Codec | None:
    if compression is None:
        if level is not None:
            raise OptionError("level is for compression")
        return None
    if not isinstance(compression, str) or compression != "zstd":
        raise OptionError(f"compression must be None or 'zstd', not {compression!r}")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise TypeError(f"level must be an int, not {type(level).__name__}")
    return zstd(level)


def _check_restore_id(restore_id: str) -> None:
    try:
        length = len(restore_id.encode())
    except UnicodeEncodeError:
        raise SnapshotError(f"the restore_id {restore_id!r} cannot be stored as UTF-8") from None
    if length > _RESTORE_ID_LENGTH_MAX:
        raise SnapshotError(f"the restore_id is longer than {_RESTORE_ID_LENGTH_MAX} bytes")


class _Workers:
    """Threads that read, check and encode; and what went wrong in those of Python."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[BaseException] = []


@contextmanager
def _workers(writer: _core.ImageWriter, codec: Codec | None) -> Iterator[_Workers]:
    """Threads that work while the block runs: as many as are to be had, which may be none."""
    workers = _Workers()
    threads = [
        Thread(lambda: _encode(writer, codec, workers.failures))
        for _ in range(thread_count() if codec is not None else 0)
    ]
    try:
        if codec is None:
            workers.count = writer.start(thread_count())
        for thread in threads:
            try:
                thread.start()
            except RuntimeError as error:
                if not is_ours(error):
                    raise
                break  # no more threads to be had
            workers.count += 1
        yield workers
    except BaseException:
        writer.give_up()
        # What a worker met comes first: it is why the writer gave up.
        if workers.failures:
            raise workers.failures[0] from None
        raise
    finally:
        for thread in threads:
            thread.join()
        writer.close()


def _encode(writer: _core.ImageWriter, codec: Codec | None, failures: list[BaseException]) -> None:
    assert codec is not None
    try:
        while (item := writer.next_item()) is not None:
            writer.finish_item(item, codec.encode(item.raw()))
    except BaseException as error:
        failures.append(error)
        with contextlib.suppress(ValueError):  # closed already
            writer.give_up()
