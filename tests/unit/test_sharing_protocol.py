"""The protocol of peers is in C++, in Python and in the tests: all of them say the same."""

from __future__ import annotations

import raw_protocol
from false_owner import HONEST, NOT_HERE
from raw_protocol import Error, native_enum, native_number

from pgalloc.sharing.protocol import Op


def test_requests_have_the_same_numbers() -> None:
    assert {op.name: op.value for op in Op} == {
        name: op.value for name, op in native_enum("Op").items()
    }
    assert all(op.comment for op in native_enum("Op").values())


def test_errors_have_the_same_numbers() -> None:
    assert {error.name: error.value for error in Error} == {
        name: error.value for name, error in native_enum("Error").items()
    }


def test_packets_are_the_same() -> None:
    assert native_number("kVersion") == raw_protocol.VERSION
    assert native_number("kPacketBytesMax") == raw_protocol.PACKET_MAX


def test_a_false_owner_answers_all_that_python_asks() -> None:
    assert HONEST.keys() | NOT_HERE.keys() == set(Op)
    assert not HONEST.keys() & NOT_HERE.keys()
