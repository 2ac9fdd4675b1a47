"""The part of a MemoryFile that other processes share, and that forked children inherit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pgalloc import _core
from pgalloc.arguments import checked_flag, checked_seconds
from pgalloc.errors import ForkedError
from pgalloc.sharing import files, remote
from pgalloc.sharing.broker import broker
from pgalloc.sharing.serving import Server
from pgalloc.sharing.unpinned import Unpinned
from pgalloc.snapshot.savable import Savable

if TYPE_CHECKING:
    from pgalloc.allocation import Allocation
    from pgalloc.sharing.connection import Connection


class Lease(NamedTuple):
    """What another process holds of a file."""

    pid: int
    """The peer; of what is on its way and was not claimed, the sender."""
    uid: int
    nbytes: int
    """Bytes of pages."""
    since: float
    """When the peer came, or the pages were sent: seconds since the epoch."""
    claimed: bool
    """False for pages on their way: see drop_unclaimed()."""


class Sharable(Savable):
    """The base of MemoryFile."""

    # In a forked child: the connection to the owner, and what was unpinned there.
    _parent: Connection | None = None
    _unpinned: Unpinned

    def array(self, shape: Any, dtype: Any = float, **options: Any) -> Any:
        """A numpy array of zeros in pages of their own: a view of it, too, is sent without a copy.

        ``options`` are those of allocate(), and ``order``. Raises ImportError without numpy,
        OptionError for Python objects, and what allocate() raises.
        """
        from pgalloc.sharing.arrays import new_array

        return new_array(self, shape, dtype, options)

    def serve(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        readonly: bool = False,
    ) -> Server:
        """Let processes of this user in that :func:`pgalloc.connect` to ``path``.

        The socket is for its user only (mode 0600), and who connects is checked once more. With
        ``readonly``, peers get a descriptor that cannot be written to. A socket that was left
        behind there is replaced. Raises OSError, also when somebody serves there.
        """
        self._check_usable()
        return Server(self, path, readonly=checked_flag(readonly, "readonly"))  # type: ignore[arg-type]

    def leases(self) -> list[Lease]:
        """Who holds what of this file, other than this process; and what waits to be claimed."""
        self._check_usable()
        name = self._id
        with broker.lock:
            held = [(session, session.nbytes(name)) for session in broker.sessions()]
            offers = broker.offers.of_file(name)
            return [
                Lease(session.pid, session.uid, nbytes, session.since, True)
                for session, nbytes in held
                if nbytes
            ] + [
                Lease(offer.pid, offer.uid, offer.pages.nbytes, offer.wall, False)
                for offer in offers
            ]

    def drop_unclaimed(self, older_than: float = 0.0) -> int:
        """Take back what was sent and not claimed for so many seconds. The bytes of its pages.

        After ten minutes that happens by itself. Whoever receives such pages gets a SharingError.
        """
        self._check_usable()
        return broker.drop_unclaimed(self._id, checked_seconds(older_than, "older_than"))

    def decommit(self, range: _core.FileRange) -> None:
        """Give the pages of ``range`` back to the kernel; they read as zero afterwards.

        References stay as they are. Raises RangeError unless the whole range is allocated, OSError
        when the kernel refuses (nothing has changed then).
        """
        if self._is_peer:
            remote.decommit(self, range)
        else:
            super().decommit(range)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a MemoryFile cannot be pickled: send its Allocations by multiprocessing, or serve() it"
        )

    def _publish(self) -> None:
        """Called when construction is through."""
        files.add(self)  # type: ignore[arg-type]

    # --- in a forked child -----------------------------------------------------------------------

    @property
    def _connection(self) -> Connection:
        if self._parent is None:
            raise ForkedError("this MemoryFile belongs to the parent process")
        return self._parent

    def _allocate_range_remote(self, length: int, **options: Any) -> _core.FileRange:
        return remote.allocate_range(self, length, **options)

    def _allocate_remote(self, length: int, **options: Any) -> Allocation:
        return remote.allocate(self, length, **options)

    def _has_unique_ref_remote(self, range: _core.FileRange) -> bool:
        return remote.has_unique_ref(self, range)

    def _inc_ref_local(self, range: _core.FileRange, memcg_id: int = 0) -> None:
        with self._connection.lock:
            self._unpinned.before_another(self, range)
        self._inc_ref_peer(range)

    def _unpin_remote(self, range: _core.FileRange) -> bool:
        with self._connection.lock:
            return self._unpinned.unpin(self, range)

    def _pin_remote(self, range: _core.FileRange) -> bool:
        with self._connection.lock:
            return self._unpinned.pin(self, range)

    def _inherit_from(self, home: Connection) -> None:
        self._parent = home
        self._inherit_from_peer(home.link, self._unpinned.ranges())
        self._unpinned = Unpinned()
