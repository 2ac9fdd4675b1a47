"""What a MemoryFile can be made of: nothing, a path, a descriptor, a file object."""

from __future__ import annotations

import os
from typing import Any

from pgalloc.errors import OptionError
from pgalloc.named_errors import name_of


def checked_backing(backing: object) -> tuple[bytes | int | None, bool, Any]:
    """What the core takes: a path, a descriptor or None; whether its owner keeps it; its name."""
    if backing is None:
        return None, False, None
    if isinstance(backing, (str, bytes, os.PathLike)):
        name = os.fspath(backing)
        path = os.fsencode(name)
        if b"\0" in path:
            raise OptionError("the path has a NUL byte")
        return path, False, name
    if isinstance(backing, bool):
        raise TypeError("backing must not be a bool")
    if isinstance(backing, int):
        if not 0 <= backing < 2**31:
            raise OptionError(f"not a file descriptor: {backing}")
        return backing, False, backing
    fileno = getattr(backing, "fileno", None)
    if callable(fileno):
        descriptor = fileno()
        if isinstance(descriptor, bool) or not isinstance(descriptor, int):
            raise TypeError(f"fileno() of the backing returned {descriptor!r}")
        return checked_backing(descriptor)[0], True, name_of(backing)
    raise TypeError(
        "backing must be None, a path, a file descriptor or a file object, "
        f"not {type(backing).__name__}"
    )
