"""A system call of the core whose answer is kept back, so that a test can act in the middle."""

from __future__ import annotations

from typing import Self

from waiting import eventually

from pgalloc._core import _testing


class HeldCall:
    """Context manager: the answer to one system call is kept back until let_go().

    ``number`` is which call of ``name`` from here on. The kernel has done its work, and the core
    does not know yet. The end of the block lets go as well, and fails if the call was held so long
    that it went on by itself. There can be no FaultPlan beside it.
    """

    def __init__(self, name: str, number: int = 1) -> None:
        self._name, self._number = name, number

    def __enter__(self) -> Self:
        assert _testing.install_hold(self._name, self._number), "unknown, or a plan is in force"
        return self

    def __exit__(self, *error: object) -> None:
        expired = _testing.hold_expired()
        _testing.remove_fault()
        assert not expired, "it went on by itself, a minute later: all others were blocked"

    @property
    def reached(self) -> bool:
        return _testing.hold_reached()

    def wait(self) -> None:
        """Until the call is made, by another thread."""
        eventually(lambda: self.reached, f"call {self._number} of {self._name}")

    def let_go(self) -> None:
        _testing.let_go()
