"""Restoring: a new file from an image."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pgalloc import _core
from pgalloc.errors import ClosedError, OptionError, OutOfMemoryError, SnapshotError
from pgalloc.snapshot import decoding, images, sources
from pgalloc.snapshot.codec import zstd
from pgalloc.snapshot.hooks import RestoreHook
from pgalloc.snapshot.sources import Source
from pgalloc.snapshot.threads import thread_count

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

_log = logging.getLogger("pgalloc")

File = TypeVar("File", bound="MemoryFile")


def restore(
    cls: type[File],
    source: Any,
    background: bool,
    hooks: Mapping[str, RestoreHook],
    options: dict[str, Any],
) -> File:
    """See MemoryFile.restore()."""
    if not isinstance(hooks, Mapping):
        raise TypeError(f"hooks must be a mapping, not {type(hooks).__name__}")
    for name, hook in hooks.items():
        if not callable(hook):
            raise TypeError(f"the hook {name!r} is not callable")
    _check_not_itself(source, options.get("backing"))
    with sources.opened(source, "restore", at_any_place=background) as opened:
        image = opened.image
        if image is not None:
            memory_file = _new_file(cls, image, opened, options)
            fill = partial(_load, memory_file, image, background)
            return _filled(memory_file, fill, image, opened, hooks)
        with opened.about:
            stream = images.begin(opened)
        memory_file = _new_file(cls, stream, opened, options)
        fill = partial(_read_stream, memory_file, stream, opened)
        return _filled(memory_file, fill, stream, opened, hooks)


def _check_not_itself(source: Any, backing: Any) -> None:
    """A new MemoryFile empties its backing: that must not be the image."""
    if backing is None:
        return
    try:
        same = os.path.samestat(_stat(source), _stat(backing))
    except (OSError, TypeError, ValueError):
        return  # for others to complain about
    if same:
        raise OptionError("the image cannot be the backing of the file it is restored into")


def _stat(file: Any) -> os.stat_result:
    fileno = getattr(file, "fileno", None)
    return os.stat(fileno() if callable(fileno) else file)


def _new_file(
    cls: type[File],
    image: _core.ImageFile | _core.ImageStream,
    source: Source,
    options: dict[str, Any],
) -> File:
    restore_id = options.setdefault("restore_id", image.restore_id)
    if restore_id != image.restore_id:
        with source.about:
            raise SnapshotError(f"the image is of {image.restore_id!r}, not of {restore_id!r}")
    if options.get("capacity") is not None or image.file_size <= _core.default_capacity():
        return cls(**options)
    try:
        return cls(**{**options, "capacity": image.file_size})
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise OutOfMemoryError(
            f"no address space for the saved file of {image.file_size} bytes"
        ) from error


def _filled(
    memory_file: File,
    fill: Callable[[], None],
    image: _core.ImageFile | _core.ImageStream,
    source: Source,
    hooks: Mapping[str, RestoreHook],
) -> File:
    memory_file._image = source.about
    try:
        with source.about:
            fill()
        _call_hooks(memory_file, image.hooks(), hooks)
        if memory_file.closed:
            raise ClosedError("a restore hook closed the file")
        source.finish()
    except BaseException:
        memory_file._roll_back()
        raise
    return memory_file


def _read_stream(memory_file: MemoryFile, stream: _core.ImageStream, source: Source) -> None:
    memory_file._restore_stream(stream)
    for _ in images.extents_of(stream, source):
        encoded = stream.encoded()
        memory_file._write_restored(stream, None if encoded is None else images.decoded(encoded))


def _load(memory_file: MemoryFile, image: _core.ImageFile, background: bool) -> None:
    memory_file._restore(image)
    encoded = image.has_encoded_extents
    if encoded:
        zstd()  # before anything waits for it
    memory_file._start_loading(image, 0 if encoded else thread_count())
    # For an eager restore, this thread is one of those that load.
    count = thread_count() if background else thread_count() - 1
    decoders = decoding.Decoders(memory_file, count) if encoded and count else None
    memory_file._decoders = decoders
    if not background:
        decoding.load_range(memory_file, None, None, ignore_broken=False)


def _call_hooks(
    memory_file: MemoryFile, payloads: list[tuple[str, bytes]], hooks: Mapping[str, RestoreHook]
) -> None:
    for name, payload in payloads:
        hook = hooks.get(name)
        if hook is not None:
            hook(memory_file, payload)
    left = memory_file._unadopted_bytes
    if hooks and left:
        missing = [name for name, _ in payloads if name not in hooks]
        _log.warning(
            "%d bytes of the restored file have references that no hook adopted%s",
            left,
            f"; the image has hooks that were not taken: {', '.join(missing)}" if missing else "",
        )
