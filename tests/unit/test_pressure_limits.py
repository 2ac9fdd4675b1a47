"""Limit, usage and headroom from fake cgroup trees, and from this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgalloc.pressure import PressureInfo, info

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
V1_UNLIMITED_4K = 9223372036854771712
V1_UNLIMITED_64K = (1 << 63) - (1 << 16)


class FakeHost:
    """A machine with 16 GiB, 8 GiB of them available, below ``top``."""

    def __init__(self, top: Path) -> None:
        self.proc, self.root = top / "proc", top / "root"
        (self.proc / "self").mkdir(parents=True)
        self.mount = self.root / "cg"
        self.mount.mkdir(parents=True)
        (self.proc / "meminfo").write_text(
            f"MemTotal: {16 * GIB // KIB} kB\nMemFree: 1 kB\nMemAvailable: {8 * GIB // KIB} kB\n"
        )
        self._describe("", "")

    def use_v1(self, path: str) -> None:
        self._describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory\n", f"4:memory:{path}\n")

    def use_v2(self, path: str) -> None:
        self._describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw\n", f"0::{path}\n")
        (self.mount / "cgroup.controllers").write_text("memory\n")

    def v1_level(self, path: str, limit: int, usage: int, stat: str = "", hier: int = 1) -> None:
        self._files(
            path,
            {
                "memory.limit_in_bytes": str(limit),
                "memory.usage_in_bytes": str(usage),
                "memory.stat": stat,
                "memory.use_hierarchy": str(hier),
            },
        )

    def v2_level(
        self, path: str, limit: int | str, usage: int, high: int | str = "max", stat: str = ""
    ) -> None:
        self._files(
            path,
            {
                "memory.max": str(limit),
                "memory.high": str(high),
                "memory.current": str(usage),
                "memory.stat": stat,
            },
        )

    def info(self, **environ: str) -> PressureInfo:
        return info(proc=self.proc, root=self.root, environ=environ)

    def _describe(self, mountinfo: str, cgroup: str) -> None:
        (self.proc / "self/mountinfo").write_text(mountinfo)
        (self.proc / "self/cgroup").write_text(cgroup)

    def _files(self, path: str, files: dict[str, str]) -> None:
        directory = self.mount / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content + "\n")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_v1_limit_usage_headroom(host: FakeHost) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=GIB, usage=300 * MIB)
    host.v1_level("/", limit=V1_UNLIMITED_4K, usage=5 * GIB)
    found = host.info()
    assert (found.limit, found.usage, found.headroom) == (GIB, 300 * MIB, GIB - 300 * MIB)
    assert (found.source, found.cgroup_path) == ("v1", "/app")
    assert [level.limit for level in found.levels] == [GIB, None]


@pytest.mark.parametrize("unlimited", [V1_UNLIMITED_4K, V1_UNLIMITED_64K, (1 << 63) - 1])
def test_v1_unlimited_is_none_and_the_machine_is_the_limit(host: FakeHost, unlimited: int) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=unlimited, usage=300 * MIB)
    found = host.info()
    assert (found.limit, found.usage, found.headroom) == (None, 300 * MIB, 8 * GIB)


def test_v1_the_smallest_limit_of_any_ancestor_counts(host: FakeHost) -> None:
    host.use_v1("/slice/app")
    host.v1_level("/slice/app", limit=4 * GIB, usage=1 * GIB)
    host.v1_level("/slice", limit=2 * GIB, usage=1900 * MIB)
    found = host.info()
    assert (found.limit, found.usage) == (2 * GIB, 1900 * MIB)
    assert found.headroom == 2 * GIB - 1900 * MIB


def test_headroom_is_that_of_the_tightest_level_not_of_the_smallest_limit(host: FakeHost) -> None:
    host.use_v1("/slice/app")
    host.v1_level("/slice/app", limit=1 * GIB, usage=100 * MIB)
    host.v1_level("/slice", limit=2 * GIB, usage=2 * GIB - 50 * MIB)
    found = host.info()
    assert (found.limit, found.headroom) == (1 * GIB, 50 * MIB)


def test_v1_a_parent_without_hierarchy_does_not_count(host: FakeHost) -> None:
    host.use_v1("/slice/app")
    host.v1_level("/slice/app", limit=4 * GIB, usage=1 * GIB)
    host.v1_level("/slice", limit=2 * GIB, usage=1 * GIB, hier=0)
    assert host.info().limit == 4 * GIB


def test_v1_limit_above_the_mount_shows_in_the_hierarchical_limit(host: FakeHost) -> None:
    host.use_v1("/")
    host.v1_level(
        "/", limit=V1_UNLIMITED_4K, usage=MIB, stat=f"hierarchical_memory_limit {256 * MIB}"
    )
    found = host.info()
    assert (found.limit, found.headroom) == (256 * MIB, 255 * MIB)


def test_v1_hierarchical_limit_that_a_level_explains_adds_none(host: FakeHost) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=GIB, usage=0, stat=f"hierarchical_memory_limit {GIB}")
    assert len(host.info().levels) == 1


def test_page_cache_that_can_be_dropped_is_headroom(host: FakeHost) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=GIB, usage=GIB, stat=f"total_inactive_file {400 * MIB}")
    found = host.info()
    assert (found.usage, found.headroom) == (GIB, 400 * MIB)


def test_v2_max_and_high_the_smaller_is_the_limit(host: FakeHost) -> None:
    host.use_v2("/app")
    host.v2_level("/app", limit=GIB, high=700 * MIB, usage=100 * MIB)
    found = host.info()
    assert (found.source, found.limit, found.headroom) == ("v2", 700 * MIB, 600 * MIB)


def test_v2_max_means_no_limit(host: FakeHost) -> None:
    host.use_v2("/app")
    host.v2_level("/app", limit="max", usage=100 * MIB)
    assert (host.info().limit, host.info().usage) == (None, 100 * MIB)


def test_v2_ancestors_and_reclaimable(host: FakeHost) -> None:
    host.use_v2("/slice/app")
    host.v2_level("/slice/app", limit="max", usage=100 * MIB)
    host.v2_level("/slice", limit=GIB, usage=GIB, stat=f"anon 1\ninactive_file {10 * MIB}")
    found = host.info()
    assert (found.limit, found.usage, found.headroom) == (GIB, GIB, 10 * MIB)


def test_v2_root_group_reports_the_machine(host: FakeHost) -> None:
    host.use_v2("/")
    found = host.info()
    assert (found.source, found.limit, found.headroom) == ("v2", None, 8 * GIB)
    assert found.usage == 8 * GIB  # total less available


def test_a_limit_above_the_machine_does_not_add_memory(host: FakeHost) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=64 * GIB, usage=0)
    assert (host.info().limit, host.info().headroom) == (64 * GIB, 8 * GIB)


def test_sources_without_a_controller(host: FakeHost) -> None:
    assert (host.info().source, host.info().cgroup_path) == ("none", None)
    (host.proc / "pressure").mkdir()
    (host.proc / "pressure/memory").write_text("some avg10=0.00\n")
    assert host.info().source == "psi"
    assert host.info(MEMORY_PRESSURE_WATCH="/run/pressure").sources == ("systemd", "psi")
    assert host.info(MEMORY_PRESSURE_WATCH="/dev/null").sources == ("psi",)


def test_over_the_limit_is_no_negative_headroom(host: FakeHost) -> None:
    host.use_v1("/app")
    host.v1_level("/app", limit=MIB, usage=2 * MIB)
    assert host.info().headroom == 0


def test_damaged_files_count_as_absent(host: FakeHost) -> None:
    host.use_v2("/app")
    host.v2_level("/app", limit="?", usage=MIB, stat="garbage\nmore garbage here\n")
    (host.proc / "meminfo").write_text("MemTotal: lots\n")
    found = host.info()
    assert (found.limit, found.usage) == (None, MIB)
    assert found.machine_total > 0


def test_this_machine() -> None:
    found = info()
    assert 0 < found.machine_available <= found.machine_total
    assert 0 <= found.headroom <= found.machine_available
    assert found.source in ("v1", "v2", "systemd", "psi", "none")
    assert found.limit is None or found.limit < 1 << 62
