"""The part of a MemoryFile that is saved and restored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.arguments import checked_flag, checked_timeout
from pgalloc.records import LoadProgress, UnadoptedRange
from pgalloc.snapshot import decoding, restoring, saving
from pgalloc.snapshot.hooks import Hooks, RestoreHook, SaveHook

if TYPE_CHECKING:
    from typing import Self


class Savable(_core.MemoryFile):
    """The base of MemoryFile, which sets what is declared here."""

    _hooks: Hooks
    _decoders: decoding.Decoders | None  # threads that decode a background restore

    @property
    def restore_id(self) -> str:
        """The label by which an image finds the file to restore."""
        raise NotImplementedError

    def _check_usable(self) -> None:
        """Raise ClosedError or ForkedError, if that is so."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Close a file that nobody has seen yet; an adopted descriptor stays open."""
        raise NotImplementedError

    def save(
        self,
        target: str | bytes | os.PathLike[str] | os.PathLike[bytes] | Any,
        *,
        exclude_committed_zero_pages: bool = True,
        compression: str | None = None,
        level: int | None = None,
    ) -> None:
        """Write an image of all pages, what they are used for, and what the hooks store.

        ``target`` is a path, where the image appears complete or not at all and replaces what was
        there in one step; or a binary file object, which is only written in order. Pages that are
        zero are left out, unless ``exclude_committed_zero_pages`` is False: then committed ones
        are stored. ``compression`` "zstd" needs Python 3.14 or the extra ``zstd``.

        The file stays as it is, and in use. What others write, allocate or free meanwhile may be in
        the image or not. Pages that a background restore has not loaded yet are loaded first.

        Raises SnapshotError while an evictable user is registered (evict first), OSError when
        reading or writing fails; what the hooks and ``target.write`` raise passes through.
        """
        self._check_usable()
        saving.save(
            self,
            target,
            self._hooks,
            keep_zeros=not checked_flag(
                exclude_committed_zero_pages, "exclude_committed_zero_pages"
            ),
            compression=compression,
            level=level,
        )

    @classmethod
    def restore(
        cls,
        source: str | bytes | os.PathLike[str] | os.PathLike[bytes] | Any,
        *,
        background: bool = False,
        hooks: Mapping[str, RestoreHook] | None = None,
        **options: Any,
    ) -> Self:
        """A new MemoryFile with the pages of an image, each with the references it had.

        ``source`` is a path, or a binary file object, which is read forward from where it is.
        ``options`` are those of the constructor; a ``restore_id`` among them must be the
        image's. With ``background``, which needs a file on disk or in memory, the call returns as
        soon as the metadata is in place: ranges that are mapped wait for their own pages, and a
        page that cannot be loaded is an error for those who touch it.

        Each hook is called with the new file and the bytes that were stored under its name; there
        owners take their pages over again, with Allocation.adopt(). unadopted() says what nobody
        took.

        Raises SnapshotError (SnapshotCorruptError, SnapshotVersionError) for an image that cannot
        be restored, OutOfMemoryError when it does not fit; nothing is left behind then.
        """
        return restoring.restore(
            cls,
            source,
            checked_flag(background, "background"),
            {} if hooks is None else hooks,
            options,
        )

    def save_hook(self, name: str, *, save: SaveHook, restore: RestoreHook | None = None) -> None:
        """Have ``save()`` called by each save(), and store the bytes it returns under ``name``.

        ``restore`` is kept for :attr:`restore_hooks`. Raises OptionError for a name that is taken,
        empty, or longer than 255 bytes.
        """
        self._check_usable()
        self._hooks.add(name, save, restore)

    def remove_save_hook(self, name: str) -> None:
        """Forget a hook. Raises OptionError if there is none of that name."""
        self._hooks.remove(name)

    @property
    def restore_hooks(self) -> dict[str, RestoreHook]:
        """What save_hook() was given as ``restore``, by name: what restore() takes as ``hooks``."""
        return self._hooks.restorers()

    def unadopted(self) -> list[UnadoptedRange]:
        """The references of a restored file that no owner has taken over."""
        self._check_usable()
        return [UnadoptedRange(*row) for row in self._unadopted()]

    def load_progress(self) -> LoadProgress:
        """How far a background restore is. All zero for a file that was not restored like that."""
        self._check_usable()
        total, pending, dropped, failed = self._load_progress()
        return LoadProgress(total, total - pending - dropped - failed, dropped, failed)

    def wait_loaded(self, timeout: float | None = None) -> bool:
        """Wait until no page is on its way from the image. False if ``timeout`` seconds passed.

        Pages that could not be loaded count as done: load_progress() knows them.
        """
        self._check_usable()
        return decoding.load(self, None, checked_timeout(timeout), ignore_broken=True)

    async def loaded(self) -> None:
        """As wait_loaded(), for asyncio."""
        await decoding.loaded(self)

    def _await_pages(self, range: _core.FileRange) -> None:
        """Called by what maps pages, which is native."""
        decoding.load(self, range, None, ignore_broken=False)
