"""PeerFile: the pages of another process's MemoryFile, as far as this one shares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.arguments import checked_int, checked_memcg_id, checked_timeout
from pgalloc.enums import AllocationMode, Direction, MemoryKind
from pgalloc.errors import OptionError, OwnerGoneError
from pgalloc.filling import Reader
from pgalloc.raised import is_ours
from pgalloc.sharing import protocol, remote
from pgalloc.sharing.connection import Connection, of_file
from pgalloc.sharing.protocol import Op
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self


class PeerFile(Uncopyable, _core.PeerFile):
    """Another process's MemoryFile. What was received from there has it as its ``file``.

    Pages that this process holds stay the owner's: it counts them, and takes them back when this
    process lets go of them or dies. Allocating, decommitting, unpinning and pinning ask the owner;
    cloning, slicing, mapping and releasing do not. When the owner has gone, pages that are held can
    still be read and written; whatever has to ask raises OwnerGoneError.

    Get one from :func:`pgalloc.connect`, or as ``allocation.file``. All methods may be called from
    any thread.
    """

    _instead_of_copying = "its Allocations have clone(); connect() makes another one"
    _instead_of_pickling = "send an Allocation by multiprocessing, or connect() there"

    def __init__(
        self,
        connection: Connection,
        name: int,
        *,
        owns_connection: bool = False,
        _description: tuple[bytes, _core.ArrivedDescriptor] | None = None,
    ) -> None:
        if not isinstance(connection, Connection):
            raise TypeError("use pgalloc.connect()")
        name = checked_int(name, "name", high=2**64 - 1)
        try:
            if _description is None:
                _description = connection.request_descriptor(Op.OPEN, protocol.NAME.pack(name))
            answer, descriptor = _description
            _name, capacity, readonly = protocol.head(protocol.FILE, answer)
            super().__init__(descriptor, name, capacity, bool(readonly), connection.link)
        except OSError as error:
            if is_ours(error):
                connection.name(error)
            raise
        self._restore_id = answer[protocol.FILE.size :].decode(errors="replace")
        self._joined = connection
        self._owns_connection = owns_connection

    # --- allocating ------------------------------------------------------------------------------

    def allocate(
        self,
        length: int,
        *,
        kind: MemoryKind = MemoryKind.ANONYMOUS,
        direction: Direction = Direction.BOTTOM_UP,
        memcg_id: int = 0,
        mode: AllocationMode = AllocationMode.ALLOCATE_ONLY,
        reader: Reader | None = None,
        huge: bool | None = False,
    ) -> Allocation:
        """As :meth:`MemoryFile.allocate`. The pages live in the owner's file.

        Raises what that raises, PermissionError if the pages are shared for reading only, and
        OwnerGoneError.
        """
        self._check_usable()
        return remote.allocate(
            self,
            length,
            kind=kind,
            direction=direction,
            memcg_id=memcg_id,
            mode=mode,
            reader=reader,
            huge=huge,
        )

    def allocate_range(self, length: int, **options: Any) -> _core.FileRange:
        """As :meth:`MemoryFile.allocate_range`."""
        self._check_usable()
        return remote.allocate_range(self, length, **options)

    def array(self, shape: Any, dtype: Any = float, **options: Any) -> Any:
        """As :meth:`MemoryFile.array`."""
        from pgalloc.sharing.arrays import new_array

        return new_array(self, shape, dtype, options)

    def array_like(self, data: Any, *, dtype: Any = None, **options: Any) -> Any:
        """As :meth:`MemoryFile.array_like`."""
        from pgalloc.sharing.arrays import copy_of

        return copy_of(self, data, dtype, options)

    def decommit(self, range: _core.FileRange) -> None:
        """As :meth:`MemoryFile.decommit`, of pages that this process holds."""
        self._check_usable()
        self._remote_decommit(range)

    def has_unique_ref(self, range: _core.FileRange) -> bool:
        """Whether each page has one reference, of all processes' together: this process's."""
        self._check_usable()
        return self._remote_unique(range)

    def map_range(self, range: _core.FileRange, access: str = "rw") -> memoryview:
        """As :meth:`MemoryFile.map_range`. The view does not hold the pages."""
        if not isinstance(access, str):
            raise TypeError(f"access must be a str, not {type(access).__name__}")
        if "x" in access:
            raise PermissionError("pages of a MemoryFile cannot be mapped executable")
        if access not in ("r", "rw"):
            raise OptionError(f"access must be 'r' or 'rw', not {access!r}")
        if access == "rw" and self.readonly:
            raise PermissionError("these pages are shared for reading only")
        return self._map_range(range, access == "r")

    # --- figures ---------------------------------------------------------------------------------

    def usage(self, memcg_id: int | None = None) -> dict[MemoryKind, int]:
        """As :meth:`MemoryFile.usage`: of the owner's whole file."""
        self._check_usable()
        return remote.usage(self, 0 if memcg_id is None else checked_memcg_id(memcg_id))

    @property
    def restore_id(self) -> str:
        """The label of the owner's file."""
        if not hasattr(self, "_joined"):
            raise TypeError("PeerFile.__init__ has not run")
        return self._restore_id

    def fileno(self) -> int:
        """A descriptor of the backing file."""
        self._check_usable()
        return self._fd

    # --- the end ---------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the owner has back all that was let go of. False after ``timeout`` seconds."""
        timeout = checked_timeout(timeout)
        if self.closed:
            return True
        try:
            return self._connection.flush(timeout)
        except OwnerGoneError:
            if self.closed:  # meanwhile: it has given all back
                return True
            raise

    def close(self) -> None:
        """Give everything back, but what is viewed: its lease lives as long as the view.

        Views that are alive show what they showed, and what others write there.
        """
        if self.closed:
            return
        self._leave()
        if self._owns_connection:
            self._connection.close()
        elif self._connection.files.get(self._id) is self:
            del self._connection.files[self._id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"leased={self.leased}"
        return f"<PeerFile of process {self._joined.owner_pid} {state}>"

    @property
    def _connection(self) -> Connection:
        """To the owner. A forked child has one of its own, or raises ForkedError."""
        if self._joined.generation != _core.process_generation():
            self._joined = of_file(self)
        return self._joined


def peer_file(connection: Connection, lease: _core.ArrivedLease) -> PeerFile:
    """The file of a lease: one for each connection."""
    with connection.lock:
        file = connection.files.get(lease.file_id)
        if file is None or file.closed:
            # What came with the lease: its owner may have ended since.
            description = lease.take_description()
            file = PeerFile(connection, lease.file_id, _description=description)
            connection.files[lease.file_id] = file
        return file
