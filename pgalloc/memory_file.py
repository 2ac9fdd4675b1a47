"""MemoryFile: one file of pages."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from io import FileIO
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

from pgalloc import _core, fork
from pgalloc.accounting import kinds_to_bytes
from pgalloc.allocation import Allocation
from pgalloc.arguments import (
    checked_flag,
    checked_int,
    checked_memcg_id,
    checked_seconds,
    checked_timeout,
)
from pgalloc.backing import checked_backing
from pgalloc.enums import AllocationMode, DelayedEviction, Direction, MemoryKind
from pgalloc.errors import ClosedError, ForkedError, OptionError
from pgalloc.eviction import EvictableUser, Evictor
from pgalloc.filling import Reader, fill, fill_range
from pgalloc.named_errors import About
from pgalloc.pressure import default_guard, default_monitor
from pgalloc.records import LoadProgress, MemoryFileStats, Segment, UnadoptedRange
from pgalloc.sharing import Lease, Limits, Server, files, leases, remote
from pgalloc.sharing.connection import of_file
from pgalloc.sharing.serving import Servers
from pgalloc.snapshot import decoding, restoring, saving
from pgalloc.snapshot.hooks import Hooks, RestoreHook, SaveHook
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.pressure import Monitor
    from pgalloc.sharing.connection import Connection

HugePages = Literal["auto", "never", "always"]
_HUGE_PAGES = get_args(HugePages)  # numbered as in the core

_log = logging.getLogger("pgalloc")


def _checked_size(value: int | None, name: str) -> int | None:
    return None if value is None else checked_int(value, name, low=1, high=2**63 - 1)


def _stop_listening(monitor: Monitor, unsubscribe: Callable[[], None]) -> None:
    unsubscribe()


class MemoryFile(Uncopyable, _core.MemoryFile):
    """Pages of one backing file: allocated, counted, mapped, accounted for, given back.

    ``backing`` is None for a memfd; a path for a file on disk (created if absent); or a file
    descriptor or file object to adopt. The file is emptied. A descriptor belongs to the MemoryFile
    once construction succeeded; if it fails, it is still the caller's.

    * ``capacity``: bytes of address space to reserve, and the most the file can hold (whole pages).
      Default: four times the machine's memory, rounded up to a power of two, less if the kernel
      refuses that.
    * ``delayed_eviction``: when evictable users are asked to let go.
    * ``use_host_memcg_pressure``: evict when memory is short: at every event of
      ``pgalloc.pressure.default_monitor()``, the memory cgroup of this process and the guard of its
      limits among its sources (only with delayed eviction ENABLED).
    * ``decommit_on_destroy``: give the pages back at close() even if others have the file open.
    * ``manual_zeroing``: zero pages when handing them out, and decommit by zeroing: for files whose
      file system cannot punch holes.
    * ``disable_ima_workaround``: do not map page 0 executable for a moment at construction (done so
      that the kernel's integrity measurement sees the file while it is small).
    * ``disk_backed``, ``restore_id``: labels for the caller's own use.
    * ``max_allocatable_bytes``: allocated bytes, pages on their way back to the kernel included,
      never exceed this.
    * ``huge_pages``: "auto" gives huge pages to what asks for them (``huge=True``), and where the
      kernel offers them to what is written in full (``huge=None``: values of a Cache, share(),
      copies of arrays); "always" to each allocation that can hold one; "never" to none. Only a
      memfd has them. `pgalloc doctor` says whether the kernel offers them.
    * ``accounting``: False keeps no account: usage() raises OptionError, update_usage() looks at
      nothing, segments() know nothing committed, and the file's bytes are not in
      pgalloc.memory_accounting(). total_usage() and all else works. What it saves is the scans:
      no other call gets measurably faster.

    All methods may be called from any thread. Lengths and offsets are bytes. After close() they
    raise ClosedError, in a forked child ForkedError. A system call that fails is an OSError.
    """

    _instead_of_copying = "its Allocations have clone(); save() and restore() copy all its pages"
    _instead_of_pickling = "send its Allocations by multiprocessing, or serve() it"

    _joined: Connection | None = None  # in a forked child: the connection to the owner

    def __init__(
        self,
        backing: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int | Any | None = None,
        *,
        capacity: int | None = None,
        delayed_eviction: DelayedEviction = DelayedEviction.DEFAULT,
        use_host_memcg_pressure: bool = False,
        decommit_on_destroy: bool = False,
        manual_zeroing: bool = False,
        disable_ima_workaround: bool = False,
        disk_backed: bool = False,
        restore_id: str = "",
        max_allocatable_bytes: int | None = None,
        huge_pages: HugePages = "auto",
        accounting: bool = True,
    ) -> None:
        if hasattr(self, "_evictor"):
            raise RuntimeError("this MemoryFile is constructed already")
        if type(delayed_eviction) not in (DelayedEviction, int) or delayed_eviction not in tuple(
            DelayedEviction
        ):
            raise OptionError(f"unknown delayed_eviction: {delayed_eviction!r}")
        if not isinstance(restore_id, str):
            raise TypeError(f"restore_id must be a str, not {type(restore_id).__name__}")
        if not isinstance(huge_pages, str):
            raise TypeError(f"huge_pages must be a str, not {type(huge_pages).__name__}")
        if huge_pages not in _HUGE_PAGES:
            raise OptionError(f"huge_pages must be one of {_HUGE_PAGES}, not {huge_pages!r}")
        core_backing, duplicate, name = checked_backing(backing)
        self._disk_backed = checked_flag(disk_backed, "disk_backed")
        self._restore_id = restore_id
        self._savable = False
        self._hooks = Hooks()
        self._decoders: decoding.Decoders | None = None  # threads of a background restore
        # What errors of a background restore are about.
        self._image = About("restore", None)
        self._file_object: Any = backing if duplicate else None
        self._servers = Servers()
        self._stop_listening: weakref.finalize[[Monitor, Callable[[], None]], MemoryFile] | None = (
            None
        )
        with About("MemoryFile", name):
            super().__init__(
                core_backing,
                duplicate,
                _checked_size(capacity, "capacity"),
                int(delayed_eviction),
                checked_flag(use_host_memcg_pressure, "use_host_memcg_pressure"),
                checked_flag(decommit_on_destroy, "decommit_on_destroy"),
                checked_flag(manual_zeroing, "manual_zeroing"),
                checked_flag(disable_ima_workaround, "disable_ima_workaround"),
                _checked_size(max_allocatable_bytes, "max_allocatable_bytes"),
                _HUGE_PAGES.index(huge_pages),
                checked_flag(accounting, "accounting"),
                restore_id.encode(errors="replace"),
                name,
            )
        self._evictor = Evictor(self._evictables)
        files.add(self)
        fork.register(self._evictor)
        default_guard.ensure()
        if self._uses_memcg_pressure:
            try:
                self._listen()
            except BaseException:
                self._roll_back()
                raise
        self._log_warnings()

    def _listen(self) -> None:
        monitor = default_monitor()
        # Bound to the core's evictables: a method of this object would keep it alive for ever.
        evictables = self._evictables
        unsubscribe = monitor.subscribe(lambda event: evictables.start_all(), level="low")
        # The finalizer keeps the monitor, which all files share, for as long as this file listens.
        self._stop_listening = weakref.finalize(self, _stop_listening, monitor, unsubscribe)

    # --- the safe layer --------------------------------------------------------------------------

    if TYPE_CHECKING:  # native: one call for the pages and the handle that owns them

        def allocate(
            self,
            length: SupportsIndex,
            *,
            kind: MemoryKind = MemoryKind.ANONYMOUS,
            direction: Direction = Direction.BOTTOM_UP,
            memcg_id: int = 0,
            mode: AllocationMode = AllocationMode.ALLOCATE_ONLY,
            reader: Reader | None = None,
            huge: bool | None = False,
        ) -> Allocation:
            """Allocate pages, as a handle that owns them: the native method has the details."""

    def array(self, shape: Any, dtype: Any = float, **options: Any) -> Any:
        """A numpy array of zeros in pages of their own: it and its views are sent without a copy.

        ``shape`` is an int or a tuple of ints, ``dtype`` anything that numpy.dtype() takes.
        ``options`` are those of allocate(), and ``order``: "C" or "F". Raises ImportError without
        numpy, OptionError for a dtype of Python objects, and what allocate() raises.
        """
        from pgalloc.sharing.arrays import new_array

        return new_array(self, shape, dtype, options)

    def array_like(self, data: Any, *, dtype: Any = None, **options: Any) -> Any:
        """A numpy array in pages of its own with the contents of ``data``, as array() otherwise.

        ``data`` is anything that numpy.array() takes; ``dtype`` None is the dtype it has. Raises
        what array() and numpy.asarray() raise.
        """
        from pgalloc.sharing.arrays import copy_of

        return copy_of(self, data, dtype, options)

    def decommit(self, range: _core.FileRange) -> None:
        """Give the pages of ``range`` back to the kernel; they read as zero afterwards.

        References stay as they are. Raises RangeError unless the whole range is allocated, OSError
        when the kernel refuses (nothing has changed then).
        """
        if self._is_peer:
            self._remote_decommit(range)
        else:
            super().decommit(range)

    # --- eviction --------------------------------------------------------------------------------

    def mark_evictable(self, user: EvictableUser, range: _core.EvictableRange) -> None:
        """Let ``user.evict(range)`` be called when memory is wanted back.

        ``range`` counts in the user's own numbers. Parts that are marked already stay marked;
        touching ranges become one. Raises RangeError for an empty range.
        """
        self._check_usable()
        self._evictor.mark(self, user, range)

    def mark_unevictable(self, user: EvictableUser, range: _core.EvictableRange) -> None:
        """Take back what was marked, as far as it is. An eviction of it may be under way."""
        self._check_usable()
        if not isinstance(range, _core.EvictableRange):
            raise TypeError(f"range must be an EvictableRange, not {type(range).__name__}")
        self._evictor.unmark(user, range)

    def mark_all_unevictable(self, user: EvictableUser) -> None:
        """Take back everything a user has marked."""
        self._check_usable()
        self._evictor.unmark(user, None)

    def start_evictions(self) -> None:
        """Begin to evict everything marked, and return at once."""
        self._check_usable()
        self._evictables.start_all()

    def wait_for_evictions(self, timeout: float | None = None) -> bool:
        """Wait until no eviction runs. False if ``timeout`` seconds passed first.

        Not to be called from ``evict`` without a timeout: that call is the one waited for.
        """
        self._check_usable()
        return self._evictables.wait_until_idle(checked_timeout(timeout))

    # --- usage -----------------------------------------------------------------------------------

    def update_usage(self, memcg_ids: Collection[int] | None = None) -> bool:
        """Find out what was committed by touching pages, and book it, and what is in huge pages.

        With ``memcg_ids``, only pages that these memory cgroups pay for. Full scans take at most an
        eighth of the time: within 10 ms or eight times its duration after the last one, or while
        another thread scans, a call does nothing and returns False; else True. So without
        ``accounting``, where there is nothing to do. What the kernel does by itself, making huge
        pages of small ones or the reverse, is seen by the next full scan.
        """
        if memcg_ids is not None:
            if isinstance(memcg_ids, (str, bytes, bytearray)) or not isinstance(
                memcg_ids, Collection
            ):
                raise TypeError("memcg_ids must be a collection of ints")
            memcg_ids = [checked_memcg_id(memcg_id) for memcg_id in memcg_ids]
        return self._update_usage(memcg_ids)

    def usage(self, memcg_id: int | None = None) -> dict[MemoryKind, int]:
        """Committed bytes by kind, as far as they are known (see update_usage()).

        With a ``memcg_id`` other than 0, those that this memory cgroup pays for. huge_usage() says
        how much of it is in huge pages. Raises OptionError if the file was made with
        ``accounting=False``.
        """
        if memcg_id is not None:
            memcg_id = checked_memcg_id(memcg_id)
        if self._is_peer:
            return remote.usage(self, memcg_id or 0)
        if self._forked:
            self._check_usable()
        return kinds_to_bytes(self._usage(memcg_id or None))

    def huge_usage(self) -> int:
        """Bytes of pages in use that update_usage() last found in huge pages.

        They are among those of usage(). It is what this process has mapped by huge pages: pages
        that only others have touched are not counted before they are touched here. 0 where the
        kernel does not tell (before Linux 6.7). Pages that were freed, decommitted or discarded
        since then are not counted any more.
        """
        self._check_usable()
        return self._huge_usage()

    def segments(self) -> list[Segment]:
        """The usage set: every stretch of pages that are not free, in ascending order."""
        self._check_usable()
        return [
            Segment(start, end, MemoryKind(kind), committed, refs, memcg_id, huge, huge_bytes)
            for start, end, kind, committed, refs, memcg_id, huge, huge_bytes in self._segments()
        ]

    def wait_for_reclaim(self, timeout: float | None = None) -> bool:
        """Wait until every freed page is back with the kernel. False if ``timeout`` seconds passed.

        While the reclaimer is paused (pgalloc.testing), this waits for its resumption.
        """
        self._check_usable()
        done = self._wait_for_reclaim(checked_timeout(timeout))
        self._log_warnings()
        return done

    def stats(self) -> MemoryFileStats:
        """Counts and bytes since the file was made. Works after close(), too."""
        self._log_warnings()
        return MemoryFileStats(
            **self._stats(),
            evicted_ranges=self._evictor.evicted,
            eviction_failures=self._evictor.failures,
        )

    # --- saving and restoring --------------------------------------------------------------------

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
        there in one step, with the mode and owners of that, or a new one with those that the umask
        says; or a binary file object, which is only written in order, as are devices and FIFOs.
        Pages that are zero are left out, unless ``exclude_committed_zero_pages`` is False: then
        committed ones are stored. ``compression`` "zstd" needs Python 3.14 or the extra ``zstd``.

        The file stays as it is, and in use. What others write, allocate or free meanwhile may be in
        the image or not. Pages that a background restore has not loaded yet are loaded first.

        Raises SnapshotError while an evictable user is registered (evict first), OptionError for
        the backing of a live MemoryFile, OSError when reading or writing fails, its ``filename``
        the target; what the hooks and ``target.write`` raise passes through.
        """
        self._check_usable()
        saving.save(
            self,
            target,
            self._hooks,
            files=files.all_files(),
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

        ``source`` is a path, or a binary file object, which is read from where it is and left
        after the image (after an error: a plain file where it was, else behind what was read).
        ``options`` are those of the constructor; a ``restore_id`` among them must be the
        image's. With ``background``, which needs a path of a file or a plain file object, the call
        returns as soon as the metadata is in place: ranges that are mapped wait for their own
        pages, and a page that cannot be loaded is an error for code that touches it.

        Each hook is called with the new file and the bytes that were stored under its name; there
        owners take their pages over again, with Allocation.adopt(). unadopted() says what was
        not taken.

        Raises SnapshotError (SnapshotCorruptError, SnapshotVersionError) for an image that cannot
        be restored, OutOfMemoryError when it does not fit, OSError when reading fails, its
        ``filename`` the source; nothing is left behind then.
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

    # --- sharing ---------------------------------------------------------------------------------

    def serve(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        readonly: bool = False,
        limits: Limits | None = None,
    ) -> Server:
        """Let processes of this user in that :func:`pgalloc.connect` to ``path``.

        Until the Server is closed, or this file: it keeps the Server.

        The socket is for its user only (mode 0600), and the user of each peer is checked, too. With
        ``readonly``, peers get a descriptor that cannot be written to. ``limits`` is what each of
        them may take: by default, half of the file. A socket that was left behind there is
        replaced, unless another process keeps the folder locked. Raises OSError, also when a
        process serves there.
        """
        self._check_usable()
        return self._servers.add(lambda: Server(self, path, readonly=readonly, limits=limits))

    def leases(self) -> list[Lease]:
        """What other processes hold of this file, and what was sent and waits to be claimed."""
        self._check_usable()
        return leases.of_file(self._id)

    def drop_unclaimed(self, older_than: float = 0.0) -> int:
        """Take back what was sent at least ``older_than`` seconds ago and not claimed.

        Returns the bytes of its pages. After ten minutes that happens by itself. A receiver of such
        pages gets a SharingError.
        """
        self._check_usable()
        return _core.broker_drop_unclaimed(self._id, checked_seconds(older_than, "older_than"))

    # --- labels ----------------------------------------------------------------------------------

    @property
    def is_disk_backed(self) -> bool:
        """The label ``disk_backed`` given at construction."""
        return self._disk_backed

    @property
    def restore_id(self) -> str:
        """The label by which a saved file finds the file to restore."""
        return self._restore_id

    def mark_savable(self) -> None:
        """Label this file as one that may be saved. There is no way back."""
        self._check_usable()
        self._savable = True

    @property
    def is_savable(self) -> bool:
        """Whether mark_savable() was called."""
        return self._savable

    @property
    def file(self) -> Any:
        """The backing file: the file object that was adopted, or an unbuffered one over it.

        It is for reading and for passing on; its descriptor belongs to the MemoryFile.
        """
        self._check_usable()
        if self._file_object is None:
            return FileIO(self.fileno(), "r+", closefd=False)
        return self._file_object

    def fileno(self) -> int:
        """The descriptor of the backing file."""
        if self.closed:
            raise ClosedError("the MemoryFile is closed")
        return self._fd

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the background threads, settle the account at zero and close the file.

        Views that are alive stay valid; their memory goes with the last of them. Calling it again
        does nothing.
        """
        if self._is_peer:
            self._leave()
            return
        if self._forked:
            self._check_usable()
        if self.closed:
            return
        self._servers.close()
        if self._stop_listening is not None:
            self._stop_listening()
        try:
            self._close(False)
        finally:
            self._log_warnings()
            if self._file_object is not None:
                self._file_object.close()

    def _roll_back(self) -> None:
        """Undo construction or a restore: an adopted file stays open, and is empty."""
        if self._decoders is not None:
            self._decoders.park()
        self._file_object = None
        self._close(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._forked:
            raise ForkedError(
                "only the process that made this MemoryFile can do this, not a forked child"
            )
        if self.closed:
            raise ClosedError("the MemoryFile is closed")

    def _log_warnings(self) -> None:
        """Core threads cannot log: they leave their warnings for the next caller."""
        for warning in self._take_warnings():
            _log.warning("%s", warning)

    def __repr__(self) -> str:
        if self.closed:
            return "<MemoryFile closed>"
        return f"<MemoryFile fd={self._fd} size={self.total_size} capacity={self.capacity}>"

    def __str__(self) -> str:
        """The usage set as text, a line for each segment."""
        if self.closed or self._forked:
            return repr(self)
        lines = [
            f"  {s.start:#014x}-{s.end:#014x} {s.kind.name:<10} refs={s.refs} "
            f"known_committed={s.known_committed} memcg={s.memcg_id}"
            for s in self.segments()
        ]
        return "\n".join([repr(self), *lines])

    # --- called by native code, by name ----------------------------------------------------------

    def _fill(self, allocation: Allocation, reader: Reader) -> Allocation:
        """Called by allocate()."""
        return fill(allocation, reader)

    def _fill_range(self, range: _core.FileRange, reader: Reader) -> _core.FileRange:
        """Called by allocate_range()."""
        return fill_range(Allocation(self, range), reader)

    def _await_pages(self, range: _core.FileRange) -> None:
        """Called by everything that maps pages, while a restore is loading."""
        decoding.load(self, range, None, ignore_broken=False)

    # In a forked child, where the owner is another process:

    def _allocate_remote(self, length: int, **options: Any) -> Allocation:
        return remote.allocate(self, length, **options)

    def _allocate_range_remote(self, length: int, **options: Any) -> _core.FileRange:
        return remote.allocate_range(self, length, **options)

    def _has_unique_ref_remote(self, range: _core.FileRange) -> bool:
        return self._remote_unique(range)

    def _inc_ref_local(self, range: _core.FileRange, memcg_id: int = 0) -> None:
        self._inc_ref_peer(range)

    # --- called by pgalloc.sharing, in a forked child --------------------------------------------

    @property
    def _connection(self) -> Connection:
        """The connection to the owner. Raises ForkedError in a child that has no fork lease."""
        joined = self._joined
        if joined is None or joined.generation != _core.process_generation():
            joined = self._joined = of_file(self)
        return joined
