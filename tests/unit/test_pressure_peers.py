"""Peers and owners in memory cgroups of their own, below one that has the limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_groups import in_a_group
from waiting import environment

from pgalloc._processes.memory_group import MemoryGroup, open_place

MIB = 1 << 20

# Keeps most of the limit in unpinned memory, until it is told to end.
_OWNER = """
import sys
import pgalloc
with pgalloc.MemoryFile() as file, file.serve(sys.argv[1]):
    commit = pgalloc.AllocationMode.ALLOCATE_AND_COMMIT
    kept = [file.allocate(1 << 20, mode=commit) for _ in range(96)]
    for allocation in kept:
        allocation.unpin()
    print("ready", flush=True)
    sys.stdin.read()
"""
_PEER = """
import sys
import pgalloc
peer = pgalloc.connect(sys.argv[1])
peer.allocate(64 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT)
"""


@pytest.fixture
def pod() -> Iterator[MemoryGroup]:
    """A group of 128 MiB."""
    with open_place() as place:
        if place.version == "v2":  # which has the controller in groups one level down only
            pytest.skip("no group that has groups below it")
        with place.make("pod", 128 * MIB) as group:
            yield group


def _run_below(pod: MemoryGroup, name: str, program: str, path: Path) -> subprocess.Popen[str]:
    group = MemoryGroup(pod.version, pod.directory / name)
    group.directory.mkdir()
    command = group.command([sys.executable, "-c", program, str(path)])
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )


@in_a_group
def test_an_owner_makes_room_below_a_limit_that_it_shares(pod: MemoryGroup, tmp_path: Path) -> None:
    """Its own unpinned memory counts there, too."""
    try:
        with _run_below(pod, "owner", _OWNER, tmp_path / "socket") as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            with _run_below(pod, "peer", _PEER, tmp_path / "socket") as peer:
                peer.communicate(timeout=30)
            owner.communicate(timeout=30)
        assert (peer.returncode, owner.returncode) == (0, 0)
    finally:
        for name in ("owner", "peer"):
            MemoryGroup(pod.version, pod.directory / name).remove()
