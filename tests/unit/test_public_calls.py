"""The list of public calls is complete, and docs/testing.md has its table."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from public_calls import CALLS, Call

import pgalloc
from pgalloc import pressure

TESTING = Path(__file__).parents[2] / "docs" / "testing.md"
COLUMNS = ("call", "interrupted", "no memory", "no descriptors", "closed meanwhile", "in a child")

PLAIN = {
    "FileRange": "two numbers",
    "EvictableRange": "two numbers",
    "Lease": "a record",
    "Segment": "a record",
    "UnadoptedRange": "a record",
    "EvictableUser": "a protocol, which users implement",
    "pressure.PressureSource": "a base class: ManualSource and the Monitors show what it does",
    "pressure.Level": "a name for a type",
    "pressure.Source": "a name for a type",
}
FOR_FORKS = {"park", "resume", "reset_in_child"}
"""Called by pgalloc.fork."""
ASYNCHRONOUS = {"MemoryFile.loaded": "wait_loaded() in a thread of asyncio"}


NOT_CALLED = {
    # Attributes of sources, which are plain.
    *(f"pressure.ManualSource.{name}" for name in ("kind", "level", "poll_mask")),
    # By their owners alone: made by MemoryFile.serve(), connect(), Cache.connect(), share().
    *("Server", "PeerFile", "Shared", "pressure.EventStream"),
}


def _is_plain(name: str, thing: Any) -> bool:
    """Whether there is nothing to call: numbers, exceptions, enums and records."""
    if name in PLAIN or not callable(thing):
        return True
    is_class = isinstance(thing, type)
    return dataclasses.is_dataclass(thing) or (
        is_class and issubclass(thing, (BaseException, enum.Enum))
    )


def _public(module: ModuleType, prefix: str) -> Iterator[str]:
    """The names of a module, and of the classes that it exports."""
    for name in module.__all__:
        thing = getattr(module, name)
        if _is_plain(prefix + name, thing):
            continue
        yield prefix + name
        members = dir(thing) if isinstance(thing, type) else ()
        for member in members:
            if not member.startswith("_"):
                yield f"{prefix}{name}.{member}"


def _wanted() -> set[str]:
    names = {*_public(pgalloc, ""), *_public(pressure, "pressure.")}
    made = {name for name in names if name.rpartition(".")[2] in FOR_FORKS}
    return names - made - set(ASYNCHRONOUS) - {"pressure"} - NOT_CALLED


def test_each_public_name_has_a_call() -> None:
    shown = {name for call in CALLS.values() for name in call.names.split()}
    assert sorted(_wanted() - shown) == []
    assert sorted(shown - _wanted() - NOT_CALLED) == []


def _rows() -> dict[str, Call]:
    """By name of the row, one of its calls: all of them behave alike."""
    return {call.row: call for call in CALLS.values()}


def _cells(call: Call) -> tuple[str, ...]:
    """What the columns say of a call."""
    closed = "—" if not call.on else call.closed or "works"
    return (
        "raises; the caller's" if call.bare else "raises, undone",
        "MemoryError",
        f"{call.descriptors}, undone" if call.descriptors else "—",
        closed,
        call.child or "works",
    )


def _label(row: str) -> str:
    """The row, and its calls."""
    names = ", ".join(name for name, call in CALLS.items() if call.row == row)
    return f"{row} ({names})"


@pytest.mark.parametrize("row", _rows())
def test_the_calls_of_a_row_behave_alike(row: str) -> None:
    calls = [call for call in CALLS.values() if call.row == row]
    assert len({_cells(call) for call in calls}) == 1


def test_the_table_of_the_calls() -> None:
    lines = [line for line in TESTING.read_text().splitlines() if line.startswith("| ")]
    start = lines.index("| " + " | ".join(COLUMNS) + " |")
    found = {}
    for line in lines[start + 1 :]:
        cells = tuple(cell.strip() for cell in line.strip("| ").split(" | "))
        if len(cells) != len(COLUMNS):
            break
        found[cells[0]] = cells[1:]
    assert found == {_label(row): _cells(call) for row, call in _rows().items()}
