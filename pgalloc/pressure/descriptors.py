"""Descriptors that have an owner from their first moment: no signal handler that raises loses one.

Between the call that opens one and the assignment of what it returns such a handler may run.
Native code that calls native code has no such moment.

None is 0, 1 or 2: a program may have closed its standard streams, and what it prints must not land
in a file of ours that got its number.
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


def none_left(error: OSError) -> bool:
    """Whether it says that no descriptor can be had now: that tells nothing of what was opened."""
    return error.errno in _EXHAUSTED


def open_into(owner: object, name: str, opens: Callable[..., int], *arguments: Any) -> None:
    """Set the attribute of that name to the descriptor that ``opens(*arguments)`` returns.

    ``opens`` is a native function. Raises what it raises, or OSError; the attribute is then as it
    was.
    """
    before = vars(owner).get(name)
    _set(owner, name, opens, *arguments)
    low = vars(owner)[name]
    if low >= _FIRST_OF_OURS:
        return
    try:
        _set(owner, name, fcntl.fcntl, low, fcntl.F_DUPFD_CLOEXEC, _FIRST_OF_OURS)
    except OSError:
        vars(owner)[name] = before
        raise
    finally:
        os.close(low)


def _set(owner: object, name: str, opens: Callable[..., int], *arguments: Any) -> None:
    opened = map(opens, *((argument,) for argument in arguments))
    vars(owner).update(zip((name,), opened, strict=True))


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
        self.__del__()

    def __del__(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)
