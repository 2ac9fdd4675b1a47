"""Memory cgroups made to run programs in, and the memory that the kernel counts for a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from memory_groups import in_a_group

from pgalloc import MemoryFile
from pgalloc._processes.memory import proportional_bytes
from pgalloc._processes.memory_group import NoPlaceError, open_place
from pgalloc.pressure import MemoryCgroup

MIB = 1 << 20
LIMIT = 64 * MIB


@in_a_group
def test_a_group_has_its_limit_and_counts() -> None:
    hungry = "x = bytearray(b'x') * (200 << 20)"
    with open_place() as place, place.make("pgalloc-test", LIMIT) as group:
        done = subprocess.run(group.command([sys.executable, "-c", "pass"]))
        assert (done.returncode, group.oom_kills) == (0, 0)
        done = subprocess.run(group.command([sys.executable, "-c", hungry]))
        assert (done.returncode, group.oom_kills) == (-9, 1)
        assert group.peak == LIMIT
        directory = group.directory
    assert not directory.exists()


@in_a_group
def test_what_still_runs_in_a_group_goes_with_it() -> None:
    with open_place() as place, place.make("pgalloc-test", LIMIT) as group:
        process = subprocess.Popen(group.command(["sleep", "60"]))
        while not (group.directory / "cgroup.procs").read_text():
            pass
    assert process.wait(timeout=10) == -9


def test_a_place_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Folders that are no cgroups: what is made in them has no limit."""
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    for version in ("v1", "v2"):
        group = MemoryCgroup(version, "/", tmp_path, tmp_path, True)  # type: ignore[arg-type]
        with pytest.raises(NoPlaceError, match="Permission denied"), open_place(group):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.subtree_control"]


def test_a_controller_that_was_enabled_is_disabled_again(tmp_path: Path) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("")
    group = MemoryCgroup("v2", "/", tmp_path, tmp_path, True)
    with pytest.raises(NoPlaceError), open_place(group):
        pass
    assert control.read_text() == "-memory"


def test_there_may_be_no_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgalloc._processes.memory_group.find_memory_cgroup", lambda: None)
    with pytest.raises(NoPlaceError, match="no memory controller"), open_place():
        pass


def test_pages_of_a_memory_file_count_in_the_process_that_maps_them(mf: MemoryFile) -> None:
    before = proportional_bytes(os.getpid())
    with mf.allocate(8 * MIB) as pages:
        pages.view()[:] = bytes(8 * MIB)
        assert proportional_bytes(os.getpid()) - before >= 7 * MIB
