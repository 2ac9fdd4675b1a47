"""Descriptors that have an owner from their first moment: no signal handler that raises loses one.

Between the call that opens one and the assignment of what it returns such a handler may run.
Native code that calls native code has no such moment.

None is 0, 1 or 2: a program may have closed its standard streams, and what it prints must not land
in a file of ours that got its number. And programs close descriptors that are not theirs: a number
is compared with the file that it was opened for (device and inode) before it is used or closed.
Only among eventfds the kernel does not tell one from another.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
_FIRST_OF_OURS = 3
_IDENTITY = "_identity_of_"  # and the name of the attribute


def none_left(error: OSError) -> bool:
    """Whether it says that no descriptor can be had now: that tells nothing of what was opened."""
    return error.errno in _EXHAUSTED


def open_into(owner: object, name: str, opens: Callable[..., int], *arguments: Any) -> None:
    """Set the attribute of that name to the descriptor that ``opens(*arguments)`` returns.

    ``opens`` is a native function. Raises what it raises, or OSError; the attribute is then as it
    was.
    """
    before = getattr(owner, name, -1)
    set_to(owner, name, opens, *arguments)
    low = vars(owner)[name]
    if low < _FIRST_OF_OURS:
        try:
            set_to(owner, name, fcntl.fcntl, low, fcntl.F_DUPFD_CLOEXEC, _FIRST_OF_OURS)
        except OSError:
            vars(owner)[name] = before
            raise
        finally:
            os.close(low)
    vars(owner)[_IDENTITY + name] = _identity(vars(owner)[name])  # else it is taken to be intact


def is_intact(owner: object, name: str) -> bool:
    """Whether the attribute of that name is the descriptor that was opened into it.

    True also of what was set by others, or whose opening was interrupted.
    """
    known: tuple[int, int] | None = vars(owner).get(_IDENTITY + name)
    try:
        return known is None or known == _identity(vars(owner)[name])
    except OSError:
        return False


def close_of(owner: object, name: str) -> None:
    """Close the attribute of that name, and set it to -1; harmless when repeated."""
    attributes, fd = vars(owner), getattr(owner, name)
    if fd < 0:
        return
    try:
        intact = is_intact(owner, name)
    except MemoryError:
        intact = True
    if not intact:
        attributes[name] = -1
        return
    close = os.close
    # No signal handler can run between these two.
    attributes[name] = -1
    close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def set_to(owner: object, name: str, calls: Callable[..., int], *arguments: Any) -> None:
    """Set the attribute of that name to what ``calls(*arguments)``, a native function, returns.

    Raises what it raises; the attribute is then as it was.
    """
    answer = map(calls, *((argument,) for argument in arguments))
    vars(owner).update(zip((name,), answer, strict=True))


class Descriptor:
    """Owns one, for as long as a ``with`` block takes at most."""

    fd = -1

    def __init__(self, opens: Callable[..., int], *arguments: Any) -> None:
        open_into(self, "fd", opens, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        close_of(self, "fd")

    def __del__(self) -> None:
        close_of(self, "fd")
