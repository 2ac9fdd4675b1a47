"""What peers and the owner of pages say to each other: packets on a Unix socket.

A packet of a SOCK_SEQPACKET socket arrives whole or not at all. It has a header (version, what it
is, the number of the request) and a payload of fixed fields, at most PACKET_MAX bytes in all. A
peer numbers its requests from 1; the answer has the same number. Number 0 asks for no answer.

Nothing here is ever unpickled, and whatever does not fit is an error of the peer that sent it.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from pgalloc import errors
from pgalloc._core import FileRange

VERSION = 1
PACKET_MAX = 4096
SOCKET_PATH_BYTES_MAX = 107  # sun_path without its NUL byte: unix(7)
NONCE_BYTES = 16
HEADER = struct.Struct("<BBHI")  # version, operation or status, pages that come first, number

NAME = struct.Struct("<Q")  # of a file
PAGES = struct.Struct("<QQQ")  # file, start, end
FILE = struct.Struct("<QQB")  # file, capacity, read-only; then the label, UTF-8
HELLO = struct.Struct(f"<I{NONCE_BYTES}s")  # process id, the secret of a token (or zeros)
ALLOCATE = struct.Struct("<QQBBI")  # file, length, kind, direction, memory cgroup
USAGE = struct.Struct("<QI")  # file, memory cgroup (0: all)
COUNTS = struct.Struct("<6Q")  # bytes of each kind
VALUE = struct.Struct("<QQQQQ")  # file, start, end of the pages; start, end of the value in them
SERVED = struct.Struct("<QB")  # file, whether there is a cache
PROCESS = struct.Struct("<I")


class ProtocolError(errors.SharingError):
    """A message that no peer sends: its sender is not answered, but dropped."""


class Op(enum.IntEnum):
    """What a peer asks for."""

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
    VALUE = 15  # of a cache


# An answer's status: 0, or the place of the exception it stands for, counted from 1.
EXCEPTIONS: tuple[type[Exception], ...] = (
    errors.RangeError,
    errors.OptionError,
    errors.RefCountError,
    errors.OutOfMemoryError,
    errors.ClosedError,
    errors.ForkedError,
    errors.SharingError,
    PermissionError,
    TypeError,
    OSError,
    MemoryError,
)
_OS_ERROR = EXCEPTIONS.index(OSError) + 1
_OTHER = EXCEPTIONS.index(errors.SharingError) + 1


class Packet(NamedTuple):
    """A packet that was taken apart."""

    kind: int
    number: int
    payload: bytes


def pack(kind: int, number: int, payload: bytes = b"") -> bytes:
    """A packet. Raises SharingError if it is too long."""
    if len(payload) > PACKET_MAX - HEADER.size:
        raise errors.SharingError(f"{len(payload)} bytes are too much for one message")
    return HEADER.pack(VERSION, kind, 0, number) + payload


def unpack(packet: bytes) -> Packet:
    """The parts of a packet. Raises ProtocolError for what is none."""
    if not HEADER.size <= len(packet) <= PACKET_MAX:
        raise ProtocolError(f"a message of {len(packet)} bytes")
    version, kind, released, number = HEADER.unpack_from(packet)
    if version != VERSION:
        raise ProtocolError(f"version {version} of the sharing protocol, not {VERSION}")
    payload = HEADER.size + released * PAGES.size
    if payload > len(packet):
        raise ProtocolError("a malformed message")
    return Packet(kind, number, packet[payload:])


def fields(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The fields of a payload that is exactly this. Raises ProtocolError."""
    try:
        return layout.unpack(payload)
    except struct.error:
        raise ProtocolError("a malformed message") from None


def head(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """The fields that a payload begins with. Raises ProtocolError."""
    return fields(layout, payload[: layout.size])


def pages(payload: bytes) -> tuple[int, FileRange]:
    """A file and a range of it. Raises ProtocolError, RangeError."""
    file, start, end = fields(PAGES, payload)
    return file, FileRange(start, end)


def pack_pages(file: int, range: FileRange) -> bytes:
    """The payload that :func:`pages` takes apart."""
    return PAGES.pack(file, *range)


def pack_error(number: int, error: Exception) -> bytes:
    """The answer that stands for an exception."""
    text = str(error).encode(errors="replace")[:1000]
    if isinstance(error, OSError) and error.errno:
        # Its number says which kind it is.
        text = (error.strerror or "").encode(errors="replace")[:1000]
        return pack(_OS_ERROR, number, struct.pack("<i", error.errno) + text)
    for status, kind in enumerate(EXCEPTIONS, 1):
        if type(error) is kind:
            return pack(status, number, text)
    if isinstance(error, MemoryError):
        return pack(EXCEPTIONS.index(MemoryError) + 1, number, text)
    return pack(_OTHER, number, text)


def exception(status: int, payload: bytes) -> Exception:
    """The exception that an answer stands for."""
    if not 1 <= status <= len(EXCEPTIONS):
        return errors.SharingError(f"the owner answered with the unknown status {status}")
    if status == _OS_ERROR and len(payload) >= 4:
        (number,) = struct.unpack_from("<i", payload)
        return OSError(number, payload[4:].decode(errors="replace"))
    return EXCEPTIONS[status - 1](payload.decode(errors="replace"))
