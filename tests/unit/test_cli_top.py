"""``pgalloc top``: what is shown of whom, and what is said when there is nothing to show."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pgalloc
from pgalloc.cli.app import cli
from pgalloc.cli.top import command as top_command
from pgalloc.cli.top import huge as top_huge
from pgalloc.cli.top import model as top_model
from pgalloc.cli.top.model import LookError, look_around, look_at

MIB = 1 << 20
PAGE = pgalloc.PAGE_SIZE

# Another process with two files, one of them open twice, that ends with its standard input.
HOLDER = """
import os, socket, sys
import pgalloc
first, second = pgalloc.MemoryFile(), pgalloc.MemoryFile()
held = first.allocate(3 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_WRITE_POPULATE)
again = os.dup(second.fileno())
server = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[1]))
server.bind(sys.argv[2])
server.listen()
print("ready", flush=True)
sys.stdin.read()
"""


def run_top(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["top", *map(str, arguments)])


@contextlib.contextmanager
def holder(path: Path, kind: str = "SOCK_STREAM") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def test_it_shows_the_files_of_another_process(tmp_path: Path) -> None:
    with holder(tmp_path / "socket") as process:
        result = run_top(process.pid, "--once")
        view = look_at(process.pid)
    assert result.exit_code == 0, result.output
    assert f"process {process.pid}" in result.output
    assert "2 files, 3 MiB in use" in result.output
    assert re.search(r"\b3 MiB\b.*\b100%", result.output)
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert [file.usage for file in view.files] == [3 * MIB, 0]
    assert [len(file.descriptors) for file in view.files] == [1, 2]
    assert all(file.size >= file.usage for file in view.files)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
def test_a_socket_names_the_process_that_listens(tmp_path: Path, kind: str) -> None:
    with holder(tmp_path / "socket", kind) as process:
        result = run_top(tmp_path / "socket", "--once", "--json")
    assert result.exit_code == 0, result.output
    assert [seen["pid"] for seen in json.loads(result.output)["processes"]] == [process.pid]


def test_json_has_usage_limit_and_headroom() -> None:
    with (
        pgalloc.MemoryFile() as file,
        file.allocate(PAGE, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT),
    ):
        result = run_top(os.getpid(), "--once", "--json")
        inode = os.fstat(file.fileno()).st_ino
    assert result.exit_code == 0, result.output
    (seen,) = json.loads(result.output)["processes"]
    usages = {file["inode"]: file["usage"] for file in seen["files"]}  # other tests have theirs
    assert usages[inode] == PAGE
    assert seen["usage"] >= PAGE
    ours = pgalloc.pressure.info()
    assert seen["pressure"]["limit"] == ours.limit
    assert seen["pressure"]["cgroup_path"] == ours.cgroup_path
    assert seen["pressure"]["headroom"] >= 0


def test_without_a_target_it_finds_every_process_of_the_user(tmp_path: Path) -> None:
    with holder(tmp_path / "socket") as process, pgalloc.MemoryFile():
        found = {view.pid for view in look_around()}
        result = run_top("--once", "--json")
    assert {process.pid, os.getpid()} <= found
    assert {process.pid, os.getpid()} <= {s["pid"] for s in json.loads(result.output)["processes"]}


def test_a_kernel_that_does_not_tell_of_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    with pgalloc.MemoryFile() as file, file.allocate(PAGE) as pages, pages.view() as view:
        view[0] = 1
        assert look_at(os.getpid()).huge is not None
        monkeypatch.setattr(top_huge.fcntl, "ioctl", refuse)
        view_without = look_at(os.getpid())
        result = run_top(os.getpid(), "--once", "--json")
    assert view_without.huge is None
    assert {one.huge for one in view_without.files} == {None}
    (seen,) = json.loads(result.output)["processes"]
    assert seen["huge"] is None


def test_page_tables_are_asked_until_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mappings that touch are one question; a run that is told twice counts once."""
    name = "/memfd:pgalloc (deleted)"
    (tmp_path / "maps").write_text(
        f"10000000-20000000 rw-s 00000000 00:01 7    {name}\n"
        f"20000000-30000000 rw-s 10000000 00:01 7    {name}\n"
        f"40000000-50000000 rw-s 00000000 00:01 8    {name}\n"
        "60000000-70000000 rw-p 00000000 00:00 0\n"
    )
    (tmp_path / "pagemap").touch()
    asked: list[tuple[int, int]] = []

    def scan(_: int, request: int, data: bytearray) -> int:
        assert request == 0xC0606610
        fields = struct.unpack("12Q", data)
        start, end, vector = fields[2], fields[3], fields[5]
        asked.append((start, end))
        regions = (ctypes.c_uint64 * 3).from_address(vector)
        if start != 0x10000000:
            # What was told before, and half of what is left.
            regions[0], regions[1] = start - 0x200000, start + 0x400000
            struct.pack_into("Q", data, 32, end)
            return 1
        regions[0], regions[1] = start + 0x200000, start + 0x600000
        struct.pack_into("Q", data, 32, 0x18000000)
        return 1

    monkeypatch.setattr(top_huge.fcntl, "ioctl", scan)
    found = top_huge.huge_bytes_by_inode(tmp_path, name)
    assert found == {7: 0x800000, 8: 0x400000}
    assert asked == [
        (0x10000000, 0x30000000),
        (0x18000000, 0x30000000),
        (0x40000000, 0x50000000),
    ]
    assert top_huge.huge_bytes_by_inode(tmp_path / "none", name) is None
    assert top_huge.huge_bytes_by_inode(tmp_path, "another") == {}


def test_a_memfd_of_another_name_is_no_file_of_ours() -> None:
    with pgalloc.MemoryFile():
        before = look_at(os.getpid()).files
        descriptor = os.memfd_create("pgalloc-too")
        assert look_at(os.getpid()).files == before
        os.close(descriptor)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("4194305", "there is no process 4194305"),
        ("no such file", "no such file is neither a process id nor a socket"),
        (sys.executable, "is neither a process id nor a socket"),
    ],
)
def test_what_cannot_be_shown_is_told(target: str, reason: str) -> None:
    result = run_top(target)
    assert result.exit_code == 1
    assert re.fullmatch(f"pgalloc top: .*{reason}", result.stderr.rstrip())


def test_a_process_without_files_is_told() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        result = run_top(process.pid)
        process.kill()
    assert result.exit_code == 1
    assert (
        result.stderr == f"pgalloc top: process {process.pid} (sleep) has no pgalloc files open\n"
    )


def test_no_permission_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may see nearly everything, so the kernel's refusal is played.
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(top_model.os, "listdir", refuse)
    with pytest.raises(LookError, match="process 77: no permission to see what it has open"):
        look_at(77)


def test_no_process_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_command, "look_around", list)
    result = run_top()
    assert result.exit_code == 1
    assert "no process of this user has pgalloc files open" in result.stderr


def test_a_socket_without_listener_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "stale"))
    result = run_top(tmp_path / "stale")
    assert result.exit_code == 1
    assert "nobody listens there" in result.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "datagrams"))
        result = run_top(tmp_path / "datagrams")
    assert result.exit_code == 1
    assert "not a kind of socket that has connections" in result.stderr


def test_json_repeats_until_the_process_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "socket") as process:
        watching = subprocess.Popen(
            [sys.executable, "-m", "pgalloc", "top", "--json", "--interval=0.05", str(process.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        times = [json.loads(watching.stdout.readline())["time"] for _ in range(3)]
    rest, errors = watching.communicate(timeout=30)
    assert watching.returncode == 0
    times += [json.loads(line)["time"] for line in rest.splitlines()]
    assert times == sorted(set(times))
    assert re.search(rf"process {process.pid}\b", errors)


def test_the_screen_follows_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: a new picture after each interval, and an interrupt is a normal end."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    pauses: list[float] = []

    with pgalloc.MemoryFile() as file:

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                raise KeyboardInterrupt
            allocate = pgalloc.AllocationMode.ALLOCATE_AND_COMMIT
            held.append(file.allocate(len(pauses) * MIB, mode=allocate))

        held: list[pgalloc.Allocation] = []
        monkeypatch.setattr(time, "sleep", sleep)
        result = run_top(os.getpid(), "--interval", "0.5")
        for allocation in held:
            allocation.release()
    assert result.exit_code == 0, result.output
    assert pauses == [0.5, 0.5, 0.5]
    assert "1 MiB" in result.output
    assert "3 MiB" in result.output
