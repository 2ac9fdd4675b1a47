"""Values that are no keys of a Cache; many of them equal one, and have its hash."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np


class Text(str):
    pass


class Pair(tuple[int, int]):
    pass


class Number(int):
    pass


class Color(enum.IntEnum):
    RED = 1


class Name(enum.StrEnum):
    A = "a"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


NO_KEYS: list[Any] = [True, 1.0, -0.0, float("nan"), None, Text("a"), Number(1), Pair((1, 2))]
NO_KEYS += [Color.RED, Name.A, np.int64(1), np.str_("a"), Point(1), [], {}, {1}, bytearray(b"a")]
NO_KEYS += [(1, True), ((1, 1.0),), ("a", None), ("a", (Text("a"),)), object(), memoryview(b"a")]
