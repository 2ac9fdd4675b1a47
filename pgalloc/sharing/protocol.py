"""What Python asks owners of pages for by itself, and how it reads the answers.

The protocol is in csrc/sharing/wire.h; packets and all other requests are native. Nothing here is
ever unpickled, and whatever does not fit is an error of the peer that sent it.
"""

from __future__ import annotations

import enum
import struct

from pgalloc import errors

SOCKET_PATH_BYTES_MAX = 107  # sun_path without its NUL byte: unix(7)
NONCE_BYTES = 16

NAME = struct.Struct("<Q")  # of a file
FILE = struct.Struct("<QQB")  # file, capacity, read-only; then the label, UTF-8
HELLO = struct.Struct(f"<I{NONCE_BYTES}s")  # process id, the secret of a token (or zeros)
SERVED = struct.Struct("<QB")  # file, whether there is a cache
PROCESS = struct.Struct("<I")


class ProtocolError(errors.SharingError):
    """A message that no peer sends: its sender is not answered, but dropped."""


class Op(enum.IntEnum):
    """What a peer asks for. wire.h says more of each."""

    HELLO = 1
    OPEN = 2  # the descriptor of a file
    CLAIM = 3  # the pages of a token
    OFFER = 4  # a token for pages
    ALLOCATE = 5
    RELEASE = 6  # leases on any number of ranges; has no answer
    DECOMMIT = 7
    UNIQUE = 8
    UNPIN = 9
    PIN = 10
    USAGE = 11
    FORK = 12  # a connection for a child, with the same leases
    PING = 13
    SERVED = 14  # what the server of this path serves
    CACHE = 15  # what is wanted of a served cache
    PART = 16  # of a payload that is too long for one packet; has no answer
    MAKE_ROOM = 17  # discards what counts against the peer's limits


def fields(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The fields of a payload that is exactly this. Raises ProtocolError."""
    try:
        return layout.unpack(payload)
    except struct.error:
        raise ProtocolError("a malformed message") from None


def head(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The fields that a payload begins with. Raises ProtocolError."""
    return fields(layout, payload[: layout.size])
