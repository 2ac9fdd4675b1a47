"""For tests that need a memory cgroup of their own."""

from __future__ import annotations

import contextlib

import pytest

from pgalloc._processes.memory_group import NoPlaceError, open_place


def may_make_groups() -> bool:
    with contextlib.suppress(NoPlaceError), open_place():
        return True
    return False


in_a_group = pytest.mark.skipif(not may_make_groups(), reason="no memory cgroup can be made here")
