"""Accounts of committed memory, by kind and by memory cgroup.

Every MemoryFile keeps a ledger of its own; the ledger of the process is their sum, plus what the
program booked to it by hand, such as memory of kind MAPPED that no MemoryFile backs.
"""

from __future__ import annotations

from typing import Any

from pgalloc import _core
from pgalloc.arguments import checked_bytes, checked_memcg_id
from pgalloc.enums import MemoryKind
from pgalloc.errors import OptionError

_Snapshot = tuple[list[int], dict[int, list[int]]]


def kinds_to_bytes(amounts: list[int]) -> dict[MemoryKind, int]:
    """Name the amounts that the core gives in the order of the kinds."""
    return {kind: amounts[kind] for kind in MemoryKind}


def _checked_kind(kind: MemoryKind) -> int:
    if type(kind) not in (MemoryKind, int):
        raise TypeError(f"kind must be a MemoryKind, not {type(kind).__name__}")
    if kind not in tuple(MemoryKind):
        raise OptionError(f"unknown kind: {kind!r}")
    return int(kind)


class Ledger:
    """Bytes by kind, in all and per memory cgroup. Safe for any thread.

    Memory cgroup 0 stands for "none": what is booked to it shows in the total only. Amounts are
    bytes. Taking out more than is booked raises :class:`AccountError` and changes nothing.
    """

    def __init__(self) -> None:
        self._core = _core.Ledger()

    def inc(self, bytes: int, kind: MemoryKind, memcg_id: int = 0) -> None:
        """Book ``bytes`` to a kind."""
        self._core.inc(checked_bytes(bytes), _checked_kind(kind), checked_memcg_id(memcg_id))

    def dec(self, bytes: int, kind: MemoryKind, memcg_id: int = 0) -> None:
        """Take ``bytes`` out of a kind."""
        self._core.dec(checked_bytes(bytes), _checked_kind(kind), checked_memcg_id(memcg_id))

    def move(self, bytes: int, to: MemoryKind, from_: MemoryKind, memcg_id: int = 0) -> None:
        """Move ``bytes`` from one kind to another, within one memory cgroup."""
        self._core.move(
            checked_bytes(bytes),
            _checked_kind(to),
            _checked_kind(from_),
            checked_memcg_id(memcg_id),
        )

    def _snapshot(self) -> _Snapshot:
        return self._core.snapshot()

    def total(self) -> int:
        """All bytes of all kinds."""
        return sum(self._snapshot()[0])

    def copy(self, memcg_id: int = 0) -> dict[MemoryKind, int]:
        """A consistent snapshot: of everything, or of one memory cgroup (zeros if unknown)."""
        totals, memcgs = self._snapshot()
        if checked_memcg_id(memcg_id) == 0:
            return kinds_to_bytes(totals)
        return kinds_to_bytes(memcgs.get(memcg_id, [0] * len(MemoryKind)))

    def memcg_ids(self) -> frozenset[int]:
        """The memory cgroups that anything is booked to."""
        return frozenset(self._snapshot()[1])

    def __copy__(self) -> Ledger:
        totals, memcgs = self._snapshot()
        result = Ledger()
        for kind, nbytes in kinds_to_bytes(totals).items():
            for memcg_id, amounts in memcgs.items():
                result.inc(amounts[kind], kind, memcg_id)
                nbytes -= amounts[kind]
            result.inc(nbytes, kind)
        return result

    def __deepcopy__(self, memo: Any) -> Ledger:
        return self.__copy__()

    def __repr__(self) -> str:
        amounts = ", ".join(f"{kind.name}={n}" for kind, n in self.copy().items() if n)
        return f"<{type(self).__name__} {amounts or 'empty'}>"


class _ProcessLedger(Ledger):
    """What is booked by hand goes to the core's own ledger; what is read includes every file."""

    def __init__(self) -> None:
        self._core = _core.process_ledger()

    def _snapshot(self) -> _Snapshot:
        return _core.process_account()


_process_ledger = _ProcessLedger()


def memory_accounting() -> Ledger:
    """The ledger of this process: the sum of all its open MemoryFiles, kept up to date."""
    return _process_ledger


def total_memory(size: int, used: int, *, maximum: int = 0) -> int:
    """The memory size, in bytes, to show to a user of ``used`` of ``size`` bytes.

    At least 2 GiB; if ``used`` is more than that and than ``size``, ``used`` rounded up to a power
    of two (from 2^63 on, ``used`` itself); never above ``maximum`` unless that is 0.
    """
    return _core.total_memory(
        checked_bytes(size, "size"), checked_bytes(used, "used"), checked_bytes(maximum, "maximum")
    )
