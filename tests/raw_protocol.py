"""Packets of the sharing protocol, made and taken apart by hand: what pgalloc itself does natively.

csrc/sharing/wire.h says what they mean; ``test_sharing_protocol.py`` compares both.
"""

from __future__ import annotations

import enum
import re
import struct
from pathlib import Path
from typing import NamedTuple

VERSION = 1
PACKET_MAX = 4096
HEADER = struct.Struct("<BBHI")  # version, operation or status, pages that come first, number

PAGES = struct.Struct("<QQQ")  # file, start, end
ALLOCATE = struct.Struct("<QQBBIx")  # file, length, kind, direction, memory cgroup, small pages
USAGE = struct.Struct("<QI")  # file, memory cgroup (0: all)
COUNTS = struct.Struct("<6Q")  # bytes of each kind


class Error(enum.IntEnum):
    """The status of an answer that is not 0."""

    RANGE = 1
    OPTION = 2
    REF_COUNT = 3
    OUT_OF_MEMORY = 4
    CLOSED = 5
    FORKED = 6
    SHARING = 7
    PERMISSION = 8
    SYSTEM = 9
    NO_MEMORY = 10


class Packet(NamedTuple):
    """A packet that was taken apart."""

    kind: int
    number: int
    payload: bytes


def pack(kind: int, number: int, payload: bytes = b"") -> bytes:
    """A packet, however long."""
    return HEADER.pack(VERSION, kind, 0, number) + payload


def unpack(packet: bytes) -> Packet:
    """The parts of a packet of pgalloc's."""
    assert HEADER.size <= len(packet) <= PACKET_MAX
    version, kind, released, number = HEADER.unpack_from(packet)
    assert version == VERSION
    payload = HEADER.size + released * PAGES.size
    assert payload <= len(packet)
    return Packet(kind, number, packet[payload:])


class Enumerator(NamedTuple):
    """One of an enum of wire.h."""

    value: int
    comment: str


_WIRE = (Path(__file__).parents[1] / "csrc" / "sharing" / "wire.h").read_text()


def native_enum(name: str) -> dict[str, Enumerator]:
    """An enum of wire.h. Names are written as here: kRefCount is REF_COUNT."""
    found = re.search(
        rf"enum class {name} : uint8_t \{{(.*?)^\}};", _WIRE, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    result = {}
    value = 0
    for one in re.finditer(
        r"^  k(\w+)(?: =\s*(\d+))?,((?:\s*//[^\n]*)*)", found.group(1), re.MULTILINE
    ):
        value = int(one.group(2) or value + 1)
        words = re.sub(r"(?<!^)([A-Z])", r"_\1", one.group(1)).upper()
        comment = " ".join(re.sub(r"\s*//", " ", one.group(3)).split())
        result[words] = Enumerator(value, comment)
    return result


def native_number(name: str) -> int:
    """A constant of wire.h."""
    found = re.search(rf"\b{name} = (\d+);", _WIRE)
    assert found is not None
    return int(found.group(1))
