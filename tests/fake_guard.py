"""A native guard that does what a test tells it, in the place of the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgalloc.pressure import default_guard, guard


class FakeGuard:
    """Keeps what it was told; ``cross`` does what a crossing does."""

    def __init__(self) -> None:
        self.configured: list[tuple[bytes, bytes]] = []
        self.headrooms: dict[int, tuple[float, int]] = {}
        self.watched: list[int] = []
        self.level = "none"
        self.available: int | None = 123
        self.tokens = 0

    def guard_follow(self, proc: bytes, root: bytes) -> bool:
        self.configured.append((proc, root))
        return True

    def guard_add_headroom(self, fraction: float, nbytes: int) -> int:
        self.tokens += 1
        self.headrooms[self.tokens] = (fraction, nbytes)
        return self.tokens

    def guard_remove_headroom(self, token: int) -> None:
        del self.headrooms[token]

    def guard_set_headroom(self, headroom: tuple[float, int] | None) -> None:
        self.headrooms.pop(0, None)
        if headroom is not None:
            self.headrooms[0] = headroom

    def guard_watch(self, fd: int) -> None:
        self.watched.append(fd)

    def guard_unwatch(self, fd: int) -> None:
        os.fstat(fd)  # not closed yet
        if fd in self.watched:
            self.watched.remove(fd)

    def guard_status(self) -> dict[str, Any]:
        level = {
            "directory": "/cg",
            "limit": 100,
            "usage": 1,
            "reclaimable": 0,
            "available": 99,
            "headroom": 10,
        }
        return {
            "running": True,
            "level": self.level,
            "available": self.available,
            "looks": 0,
            "crossings": 0,
            "shortfalls": 0,
            "discards": 0,
            "discarded_bytes": 0,
            "refusals": 0,
            "levels": [level],
        }

    def cross(self, level: str = "low") -> None:
        self.level = level
        for fd in self.watched:
            os.eventfd_write(fd, 1)


@contextmanager
def fake_guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuard]:
    """The fake in place, and nothing configured; afterwards nothing may be left in it."""
    fake = FakeGuard()
    monkeypatch.setattr(guard, "calls", fake)
    monkeypatch.setattr(default_guard, "_configuration", default_guard._Configuration())
    yield fake
    assert fake.watched == []
