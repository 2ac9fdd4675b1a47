"""``pgalloc demo``: the main job, what may go wrong with files, and what must make it fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pgalloc
from pgalloc.cli.app import cli
from pgalloc.cli.demo import command as demo_command
from pgalloc.cli.demo import model as demo_model
from pgalloc.cli.demo import reading as demo_reading
from pgalloc.cli.demo import slots as demo_slots
from pgalloc.cli.demo.index import Index
from pgalloc.cli.demo.model import Demo
from pgalloc.cli.demo.report import Report
from pgalloc.cli.files import Found, find_files

PAGE = pgalloc.PAGE_SIZE
READINTO = demo_reading.PaddingReader.readinto


class NoProgress:
    def begin(self, step: str, total: int) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        pass


@pytest.fixture(autouse=True)
def no_image_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever becomes of the demo, its temporary folder goes."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert list(temporary.iterdir()) == []


def make_tree(top: Path, count: int = 24) -> Path:
    """Files of every awkward size: empty, one byte, a page and its neighbours, some pages."""
    for number in range(count):
        size = (0, 1, PAGE - 1, PAGE, PAGE + 1, 7 * PAGE, 100_000, 3)[number % 8]
        folder = top / f"folder{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number:02}").write_bytes(os.urandom(size))
    return top


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def run_demo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, arguments)])


def last_line(result: Result) -> str:
    return result.output.rstrip().splitlines()[-1]


def run_model(path: Path, threads: int = 3) -> Report:
    report = Report(str(path), threads, 1 << 30)
    found = find_files(str(path), limit=1 << 30, page_size=PAGE)
    policy = pgalloc.DelayedEviction.MANUAL
    with pgalloc.MemoryFile(delayed_eviction=policy) as memory_file:
        Demo(memory_file, found, report, NoProgress()).run()
    return report


def test_the_demo_succeeds_on_a_tree(tree: Path) -> None:
    result = run_demo(tree)
    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("demo: OK — 24 files, ")
    assert last_line(result).endswith(
        ": every digest matched, here and in 2 new processes, account at zero"
    )
    for word in ("PAGE_CACHE", "ANONYMOUS", "evicted", "reloaded", "kernel says", "given back",
                 "saved", "(background)", "new process"):  # fmt: skip
        assert word in result.output


def test_the_report_adds_up(tree: Path) -> None:
    report = run_model(tree)
    assert (report.problems, report.skipped, report.files) == ([], [], 24)
    sizes = [file.stat().st_size for file in tree.rglob("file*")]
    pages = sum(-(-size // PAGE) for size in sizes) * PAGE
    assert report.file_bytes == sum(sizes)
    # 21 files have contents: every second of them is evicted, every second of those reloaded.
    assert (report.evicted_files, report.reloaded_files) == (11, 6)
    held = 24 - 11 + 6
    assert report.digests_checked == 24 + held + 2 * held
    assert (report.saved_files, report.restores) == (held, 2)
    assert PAGE * 50 < report.image_bytes < pages
    steps = {step.name: step for step in report.steps}
    for name in ("save", "restore", "restore (background)"):
        assert (steps[name].files, steps[name].nbytes) == (
            held, pages - report.evicted_bytes + report.reloaded_bytes
        )  # fmt: skip
    assert re.fullmatch(r"new process, first file after [0-9.]+ [mu]?s", steps["restore"].what)
    assert [snapshot.moment for snapshot in report.snapshots] == [
        "loaded", "evicted", "reloaded", "released",
    ]  # fmt: skip
    loaded, evicted, reloaded, released = report.snapshots
    assert loaded.committed[pgalloc.MemoryKind.PAGE_CACHE] == pages
    assert loaded.allocated[pgalloc.MemoryKind.PAGE_CACHE] == pages
    assert loaded.allocated[pgalloc.MemoryKind.ANONYMOUS] > PAGE * 100
    assert loaded.committed[pgalloc.MemoryKind.ANONYMOUS] == PAGE  # the touched part of the index
    for snapshot in (loaded, reloaded, released):
        assert sum(snapshot.committed.values()) == snapshot.kernel
    assert evicted.allocated[pgalloc.MemoryKind.PAGE_CACHE] == pages - report.evicted_bytes
    assert (
        reloaded.allocated[pgalloc.MemoryKind.PAGE_CACHE]
        == pages - report.evicted_bytes + report.reloaded_bytes
    )
    assert (released.kernel, sum(released.allocated.values())) == (0, 0)
    assert report.given_back_bytes > 0


def test_the_process_account_is_at_zero_afterwards(tree: Path) -> None:
    before = pgalloc.memory_accounting().total()
    run_model(tree)
    assert pgalloc.memory_accounting().total() == before


@pytest.mark.parametrize("threads", ["1", "16"])
def test_any_number_of_threads(tree: Path, threads: str) -> None:
    assert run_demo(tree, "--threads", threads).exit_code == 0


def test_a_single_file(tree: Path) -> None:
    result = run_demo(tree / "folder0" / "file06")
    assert last_line(result).startswith("demo: OK — 1 file, 97.7 KiB: every digest matched, here")
    assert result.exit_code == 0


def test_only_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    result = run_demo(tmp_path)
    assert "OK — 1 file, 0 B" in last_line(result)
    assert result.exit_code == 0


def test_an_empty_folder_verifies_nothing_and_says_so(tmp_path: Path) -> None:
    result = run_demo(tmp_path)
    assert "nothing was verified" in last_line(result)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["/does/not/exist"],
        ["--threads", "0"],
        ["--limit", "0"],
        ["--limit", "many"],
        ["--html", "/does/not/exist/page.html"],
        ["one", "two"],
    ],
)
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    result = run_demo(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.output


def test_the_default_is_the_standard_library_up_to_the_limit() -> None:
    result = run_demo("--limit", "8M")
    assert result.exit_code == 0, result.output
    assert "over --limit" in result.output
    assert "site-packages" not in result.output


def test_names_that_are_not_utf8_links_and_fifos(tree: Path, tmp_path: Path) -> None:
    (tree / os.fsdecode(b"caf\xe9 [bold]")).write_text("x")
    (tree / "loop").symlink_to(".")
    os.mkfifo(tree / os.fsdecode(b"pipe\xff"))
    page = tmp_path / "page.html"
    result = run_demo(tree, "--html", page)
    assert result.exit_code == 0, result.output
    assert "pipe\\xff" in result.output
    assert "OK — 25 files" in last_line(result)
    assert "pipe\\xff" in page.read_text()


def tamper(monkeypatch: pytest.MonkeyPatch, name: str, act: str, path: Path) -> None:
    """Does something to the file ``path`` when the demo reads it for the first time."""
    acted: list[bool] = []

    def readinto(self: demo_reading.PaddingReader, buffer: memoryview) -> int:
        mine = os.readlink(f"/proc/self/fd/{self._fd}") == str(path)
        if mine and not acted:
            acted.append(True)
            if act == "shrink":
                os.truncate(path, 10)
            elif act == "grow":
                with path.open("ab") as file:
                    file.write(b"more")
            elif act == "fail":
                raise OSError(5, "Input/output error")
        return READINTO(self, buffer)

    monkeypatch.setattr(demo_reading.PaddingReader, name, readinto)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("shrink", "shrank while it was read"),
        ("grow", "changed while it was read"),
        ("fail", "Input/output error"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_left_out(
    tree: Path, monkeypatch: pytest.MonkeyPatch, act: str, reason: str
) -> None:
    tamper(monkeypatch, "readinto", act, tree / "folder0" / "file06")
    report = run_model(tree)
    assert [skipped.reason for skipped in report.skipped] == [reason]
    assert (report.problems, report.files) == ([], 23)


def test_files_that_vanish_or_grow_before_they_are_read_are_left_out(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_then_change(path: str, **options: object) -> Found:
        found = find_files(path, **options)  # type: ignore[arg-type]
        (tree / "folder0" / "file06").unlink()
        (tree / "folder1" / "file01").write_bytes(bytes(5 * PAGE))
        return found

    monkeypatch.setattr(demo_command, "find_files", find_then_change)
    result = run_demo(tree)
    assert result.exit_code == 0, result.output
    assert "1 x vanished" in result.output
    assert "1 x grew after it was found" in result.output


def test_a_file_that_changes_after_it_was_loaded_is_left_out(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree / "folder0" / "file06"
    load = demo_slots.Slot.load

    def load_then_change(self: demo_slots.Slot, memory_file: pgalloc.MemoryFile) -> None:
        load(self, memory_file)
        if self.source.path == str(path):
            path.write_bytes(os.urandom(path.stat().st_size))

    monkeypatch.setattr(demo_slots.Slot, "load", load_then_change)
    report = run_model(tree)
    assert {skipped.reason for skipped in report.skipped} == {"changed while it was read"}
    assert report.problems == []


def test_an_unreadable_file_is_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def guarded(path: str, flags: int, *rest: object, **options: object) -> int:
        if str(path).endswith("file06"):
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, flags, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", guarded)
    report = run_model(tree)
    assert [skipped.reason for skipped in report.skipped] == ["Permission denied"]
    assert (report.problems, report.files) == ([], 23)


def test_no_memory_for_a_file_leaves_it_out(tree: Path) -> None:
    report = Report(str(tree), 2, 1 << 30)
    found = find_files(str(tree), limit=1 << 30, page_size=PAGE)
    with pgalloc.MemoryFile(
        delayed_eviction=pgalloc.DelayedEviction.MANUAL,
        max_allocatable_bytes=(4 << 20) + 10 * PAGE,
    ) as memory_file:
        Demo(memory_file, found, report, NoProgress()).run()
    assert {skipped.reason for skipped in report.skipped} == {"no memory left for it"}
    assert report.problems == []


@pytest.mark.parametrize("reading", [1, 2], ids=["when loaded", "when reloaded"])
def test_a_planted_corruption_makes_the_demo_fail(
    tree: Path, monkeypatch: pytest.MonkeyPatch, reading: int
) -> None:
    """The test of the demo: one flipped bit in one file, at its first or at its second reading."""
    readings: dict[str, int] = {}
    planted: list[str] = []

    def corrupt(self: demo_reading.PaddingReader, buffer: memoryview) -> int:
        begins = self._offset == 0
        count = READINTO(self, buffer)
        path = os.readlink(f"/proc/self/fd/{self._fd}")
        readings[path] = readings.get(path, 0) + begins
        if begins and readings[path] == reading and not planted:
            planted.append(path)
            buffer[0] ^= 1
        return count

    monkeypatch.setattr(demo_reading.PaddingReader, "readinto", corrupt)
    result = run_demo(tree, "--threads", "1")
    assert result.exit_code == 1
    assert last_line(result).startswith(f"demo: FAILED — wrong digest: {planted[0]}")


def test_bytes_behind_the_end_of_a_file_make_the_demo_fail(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dirty(self: demo_reading.PaddingReader, buffer: memoryview) -> int:
        count = READINTO(self, buffer)
        if count < len(buffer):
            buffer[-1] = 1
        return count

    monkeypatch.setattr(demo_reading.PaddingReader, "readinto", dirty)
    result = run_demo(tree)
    assert result.exit_code == 1
    assert "bytes behind the end of the file" in last_line(result)


def test_memory_that_is_not_given_back_makes_the_demo_fail(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "release", lambda self: None)
    monkeypatch.setattr(demo_model, "SETTLE_S", 0.1)
    result = run_demo(tree)
    assert result.exit_code == 1
    assert "the account ended at" in last_line(result)


def test_an_eviction_that_does_nothing_makes_the_demo_fail(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_slots.Shelf, "evict", lambda self, numbers: None)
    result = run_demo(tree)
    assert result.exit_code == 1
    assert "only 0 of 11 files were evicted" in last_line(result)


def test_an_allocator_that_fails_is_reported_without_a_traceback(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(24, "memfd_create: Too many open files")

    monkeypatch.setattr(pgalloc, "MemoryFile", refuse)
    result = run_demo(tree)
    assert result.exit_code == 1
    assert "Too many open files" in last_line(result)


class Balance(HTMLParser):
    """Checks that tags are closed in order, and collects what a browser would fetch."""

    VOID = ("meta", "input", "link", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(tree: Path, tmp_path: Path) -> None:
    (tree / "<b>&amp;").symlink_to(".")
    file = tmp_path / "page.html"
    result = run_demo(tree, "--html", file)
    assert result.exit_code == 0, result.output
    page = file.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.fetched == []
    assert {"svg", "path", "style", "table", "title"} <= balance.seen
    assert not balance.seen & {"script", "link", "img"}
    assert re.search(r"@import|url\(", page) is None
    assert "prefers-color-scheme: dark" in page
    assert "&lt;b&gt;&amp;amp;" in page
    assert page.count('role="img"') == 4
    assert "demo: OK" in page


def test_a_page_that_cannot_be_written_fails_at_once(tree: Path, tmp_path: Path) -> None:
    result = run_demo(tree, "--html", tmp_path)
    assert result.exit_code == 2


def command(tree: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pgalloc", "demo", str(tree), *options],
        capture_output=True,
        env={**os.environ, **environ},
        check=False,
        timeout=120,
    )


def test_in_a_pipe_at_80_columns(tree: Path) -> None:
    run = command(tree, COLUMNS="80", PYTHONIOENCODING="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stderr == b""
    lines = run.stdout.decode().splitlines()
    assert all(len(line) <= 80 or str(tree) in line for line in lines[:-1])
    assert lines[-1].startswith("demo: OK — 24 files, ")
    assert "\x1b" not in run.stdout.decode()
    assert "█" in run.stdout.decode()


def test_in_a_pipe_that_knows_only_ascii(tree: Path) -> None:
    run = command(tree, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert run.stdout.splitlines()[-1].startswith(b"demo: OK - 24 files, ")
    assert b"####" in run.stdout or b"+++" in run.stdout
