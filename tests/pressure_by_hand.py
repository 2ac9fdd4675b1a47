"""Monitors on sources that are signalled by hand and a fake guard: fixtures.

A test module imports the fixtures that it uses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from fake_guard import FakeGuard, fake_guard

from pgalloc.pressure import ManualSource, Monitor


def threads() -> int:
    return sum(thread.name == "pgalloc-pressure" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuard]:
    with fake_guard(monkeypatch) as fake:
        yield fake


@pytest.fixture
def source() -> ManualSource:
    return ManualSource()


@pytest.fixture
def monitor(source: ManualSource) -> Iterator[Monitor]:
    with Monitor(sources=[source]) as monitor:
        yield monitor
    assert monitor.closed
