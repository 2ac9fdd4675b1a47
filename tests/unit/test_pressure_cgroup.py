"""Row N1: finding the memory cgroup in every layout, on fake trees and on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgalloc.pressure import MemoryCgroup, find_memory_cgroup

V1_MOUNT = "35 31 0:32 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


class FakeHost:
    """A procfs and a file system below ``top``."""

    def __init__(self, top: Path) -> None:
        self.proc = top / "proc"
        self.root = top / "root"
        (self.proc / "self").mkdir(parents=True)
        self.root.mkdir()

    def describe(self, mountinfo: list[str], cgroup: list[str]) -> None:
        (self.proc / "self/mountinfo").write_text("".join(line + "\n" for line in mountinfo))
        (self.proc / "self/cgroup").write_text("".join(line + "\n" for line in cgroup))

    def group(self, path: str, **files: str) -> Path:
        directory = self.root / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name.replace("__", ".")).write_text(content)
        return directory

    def find(self) -> MemoryCgroup | None:
        return find_memory_cgroup(proc=self.proc, root=self.root)

    def found(self) -> MemoryCgroup:
        group = self.find()
        assert group is not None
        return group


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def v1(root: str = "/", point: str = "/sys/fs/cgroup/memory") -> str:
    return V1_MOUNT.format(root=root, point=point)


def v2(root: str = "/", point: str = "/sys/fs/cgroup") -> str:
    return V2_MOUNT.format(root=root, point=point)


def test_n1_v1_joins_mount_point_and_path(host: FakeHost) -> None:
    host.describe([v1()], ["8:pids:/", "4:memory:/app/web", "0::/"])
    directory = host.group("/sys/fs/cgroup/memory/app/web")
    group = host.found()
    assert (group.version, group.path, group.exact) == ("v1", "/app/web", True)
    assert group.directory == directory
    assert list(group.levels()) == [directory, directory.parent, directory.parent.parent]


def test_n1_v2_unified(host: FakeHost) -> None:
    host.describe([v2()], ["0::/system.slice/app.service"])
    directory = host.group("/sys/fs/cgroup/system.slice/app.service", memory__max="max\n")
    group = host.found()
    assert (group.version, group.directory, group.exact) == ("v2", directory, True)


def test_n1_v2_without_the_controller_uses_the_ancestor_that_is_charged(host: FakeHost) -> None:
    host.describe([v2()], ["0::/outer/inner"])
    outer = host.group("/sys/fs/cgroup/outer", memory__max="max\n")
    host.group("/sys/fs/cgroup/outer/inner")
    assert host.found().directory == outer


def test_n1_v2_root_group_has_no_limit_files(host: FakeHost) -> None:
    host.describe([v2()], ["0::/"])
    top = host.group("/sys/fs/cgroup", cgroup__controllers="cpu io memory pids\n")
    assert host.found().directory == top


def test_n1_hybrid_takes_the_hierarchy_that_has_the_memory_controller(host: FakeHost) -> None:
    host.describe(
        [v1(), v2(point="/sys/fs/cgroup/unified")], ["4:cpu,memory:/app", "0::/app.service"]
    )
    host.group("/sys/fs/cgroup/unified/app.service", cgroup__controllers="hugetlb\n")
    directory = host.group("/sys/fs/cgroup/memory/app")
    assert (host.found().version, host.found().directory) == ("v1", directory)


def test_n1_v2_without_memory_anywhere_is_none(host: FakeHost) -> None:
    host.describe([v2()], ["0::/app"])
    host.group("/sys/fs/cgroup", cgroup__controllers="hugetlb\n")
    host.group("/sys/fs/cgroup/app")
    assert host.find() is None


def test_n1_a_colon_in_the_path_is_part_of_it(host: FakeHost) -> None:
    host.describe([v1()], ["4:memory:/cri-containerd:ab:cd"])
    directory = host.group("/sys/fs/cgroup/memory/cri-containerd:ab:cd")
    assert host.found().directory == directory


def test_n1_octal_escapes_of_the_mount_point_are_decoded(host: FakeHost) -> None:
    host.describe([v1(point=r"/cg\040roups/tab\011and\134back")], ["4:memory:/my app"])
    directory = host.group("/cg roups/tab\tand\\back/my app")
    assert host.found().directory == directory


def test_n1_names_that_are_not_utf8(host: FakeHost) -> None:
    name = os.fsdecode(b"caf\xe9")
    (host.proc / "self/mountinfo").write_text(v1() + "\n")
    (host.proc / "self/cgroup").write_bytes(b"4:memory:/caf\xe9\n")
    directory = host.group(f"/sys/fs/cgroup/memory/{name}")
    assert host.found().directory == directory


def test_n1_bind_mount_of_the_own_group(host: FakeHost) -> None:
    host.describe([v1(root="/docker/abc")], ["4:memory:/docker/abc"])
    directory = host.group("/sys/fs/cgroup/memory")
    assert (host.found().directory, host.found().exact) == (directory, True)


def test_n1_bind_mount_of_an_ancestor(host: FakeHost) -> None:
    host.describe([v1(root="/docker/abc")], ["4:memory:/docker/abc/child"])
    directory = host.group("/sys/fs/cgroup/memory/child")
    assert (host.found().directory, host.found().exact) == (directory, True)


def test_n1_host_path_without_a_namespace_falls_back_to_the_longest_ancestor(
    host: FakeHost,
) -> None:
    host.describe([v1()], ["4:memory:/kubepods/pod1/container2"])
    pod = host.group("/sys/fs/cgroup/memory/kubepods/pod1")
    assert (host.found().directory, host.found().exact) == (pod, False)


def test_n1_foreign_bind_mount_falls_back_to_the_mount_point(host: FakeHost) -> None:
    host.describe([v1(root="/docker/abc")], ["4:memory:/docker/other"])
    top = host.group("/sys/fs/cgroup/memory")
    assert (host.found().directory, host.found().exact) == (top, False)


def test_n1_process_outside_its_namespace_root(host: FakeHost) -> None:
    host.describe([v1()], ["4:memory:/../sibling"])
    top = host.group("/sys/fs/cgroup/memory")
    assert (host.found().directory, host.found().exact) == (top, False)


def test_n1_mount_root_outside_the_namespace_but_in_common(host: FakeHost) -> None:
    host.describe([v1(root="/..")], ["4:memory:/../sibling"])
    directory = host.group("/sys/fs/cgroup/memory/sibling")
    assert (host.found().directory, host.found().exact) == (directory, True)


def test_n1_mount_from_outside_the_namespace_is_searched_for_this_process(host: FakeHost) -> None:
    host.describe([v1(root="/../..")], ["4:memory:/mine"])
    host.group("/sys/fs/cgroup/memory/a/b/mine", cgroup__procs="1\n")
    directory = host.group("/sys/fs/cgroup/memory/a/c/mine", cgroup__procs=f"7\n{os.getpid()}\n")
    assert (host.found().directory, host.found().exact) == (directory, True)


def test_n1_of_several_mounts_the_one_that_shows_the_group_wins(host: FakeHost) -> None:
    host.describe(
        [v1(), v1(root="/other", point="/mnt/other"), v1(point="/gone")], ["4:memory:/app"]
    )
    directory = host.group("/sys/fs/cgroup/memory/app")
    host.group("/mnt/other")
    assert host.found().directory == directory


def test_n1_v2_in_a_namespace_of_its_own_sees_its_group_as_the_root(host: FakeHost) -> None:
    host.describe([v2()], ["0::/"])
    top = host.group("/sys/fs/cgroup", memory__max="268435456\n", memory__current="1\n")
    group = host.found()
    assert (group.directory, list(group.levels()), group.exact) == (top, [top], True)


def test_n1_v2_bind_mount_of_the_own_group_without_a_namespace(host: FakeHost) -> None:
    host.describe([v2(root="/docker/abc")], ["0::/docker/abc"])
    top = host.group("/sys/fs/cgroup", memory__max="max\n")
    assert (host.found().directory, host.found().exact) == (top, True)


def test_n1_v2_outside_its_namespace_root(host: FakeHost) -> None:
    host.describe([v2()], ["0::/../sibling:1"])
    top = host.group("/sys/fs/cgroup", memory__max="max\n")
    assert (host.found().directory, host.found().exact) == (top, False)


def test_n1_v2_mount_from_outside_the_namespace_is_searched(host: FakeHost) -> None:
    host.describe([v2(root="/..")], ["0::/mine"])
    host.group("/sys/fs/cgroup/a/mine", cgroup__procs="1\n", memory__max="max\n")
    mine = host.group(
        "/sys/fs/cgroup/b/mine", cgroup__procs=f"{os.getpid()}\n", memory__max="max\n"
    )
    assert (host.found().directory, host.found().exact) == (mine, True)


def test_n1_v2_colons_and_octal_escapes(host: FakeHost) -> None:
    host.describe([v2(point=r"/cg\0402")], ["0::/app::x y"])
    directory = host.group("/cg 2/app::x y", memory__max="max\n")
    assert host.found().directory == directory


def test_n1_hybrid_with_memory_in_v2_counts_as_v2(host: FakeHost) -> None:
    pids = "35 31 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"
    host.describe([pids, v2(point="/sys/fs/cgroup/unified")], ["8:pids:/app", "0::/app.service"])
    host.group("/sys/fs/cgroup/pids/app")
    directory = host.group("/sys/fs/cgroup/unified/app.service", memory__max="max\n")
    assert (host.found().version, host.found().directory) == ("v2", directory)


@pytest.mark.parametrize(("mount", "line"), [(v1(), "4:memory:"), (v2(), "0::")])
def test_n1_a_group_that_was_removed_leaves_its_parent(
    host: FakeHost, mount: str, line: str
) -> None:
    host.describe([mount], [f"{line}/pod/app (deleted)"])
    point = "/sys/fs/cgroup/memory" if "memory" in line else "/sys/fs/cgroup"
    pod = host.group(f"{point}/pod", memory__max="max\n")
    assert (host.found().directory, host.found().exact) == (pod, False)


@pytest.mark.parametrize(
    ("mountinfo", "cgroup"),
    [
        ([], []),
        ([v1()], []),
        ([], ["4:memory:/app"]),
        ([v1()], ["4:memory:/app"]),  # the mount point does not exist
        (["nonsense", "1 2 3 4 5 6 - x", ""], ["x", "a:b:c", "4:memory"]),
    ],
)
def test_n1_nothing_to_find_is_none(
    host: FakeHost, mountinfo: list[str], cgroup: list[str]
) -> None:
    host.describe(mountinfo, cgroup)
    assert host.find() is None


def test_n1_no_procfs_is_none(tmp_path: Path) -> None:
    assert find_memory_cgroup(proc=tmp_path / "none") is None


def test_n1_this_machine_lists_this_process() -> None:
    group = find_memory_cgroup()
    if group is None:
        pytest.skip("no memory cgroup controller on this machine")
    if not group.exact:
        pytest.skip("this process's own group is not visible here")
    procs = (group.directory / "cgroup.procs").read_text().split()
    assert not procs or str(os.getpid()) in procs or group.version == "v2"


def test_n1_real_cgroup_namespace_with_the_mount_left_outside() -> None:
    group = find_memory_cgroup()
    if group is None or group.version != "v1" or not group.exact:
        pytest.skip("needs a visible v1 memory group")
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    look = (
        "from pgalloc.pressure import find_memory_cgroup as f; g = f(); print(g.path, g.directory)"
    )
    run = subprocess.run(
        ["unshare", "--cgroup", sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in run.stderr:
        pytest.skip("may not make a cgroup namespace")
    assert run.stdout.split() == ["/", str(group.directory)], run.stderr
