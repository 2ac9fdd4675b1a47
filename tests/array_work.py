"""What other processes do with arrays and what cannot be attached: here, so that they find it."""

from __future__ import annotations

import io
import resource
from dataclasses import dataclass
from typing import Any

from pgalloc import MemoryFile


@dataclass
class Sample:
    name: str
    pixels: Any


def write(value: Any) -> str:
    """In another process: changes the first element of what comes, alone or in something."""
    if isinstance(value, dict):
        value = value["array"]
    if isinstance(value, Sample):
        value = value.pixels
    value[0] = 99
    return type(value).__name__


def double(array: Any) -> Any:
    return array * 2


def total(array: Any) -> Any:
    return array.sum()


def rows(array: Any) -> Any:
    return array[[1, 2]]


def view(array: Any) -> Any:
    return array[1:]


def little_room() -> None:
    """No room for the address space of a file: nothing can be attached."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


def look(thing: Any) -> Any:
    return thing[0] if hasattr(type(thing), "__getitem__") else thing.get()


def add(one: int, other: int) -> int:
    return one + other


def load(nbytes: int) -> None:
    with MemoryFile() as mf:
        mf.allocate(nbytes, reader=io.BytesIO(b"too short").readinto)
