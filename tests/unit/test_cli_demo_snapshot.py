"""The demo's steps over an image: what must make them fail, and that they clean up."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_model import fields, forge

import pgalloc
from pgalloc import FileRange, MemoryFile
from pgalloc.cli.demo import restore as demo_restore
from pgalloc.cli.demo import snapshot as demo_snapshot
from pgalloc.cli.demo.catalogue import HOOK, Entry, decode, encode
from pgalloc.cli.demo.index import Index, Record
from pgalloc.cli.demo.outcome import Outcome
from pgalloc.cli.demo.report import Report
from pgalloc.cli.demo.snapshot import SnapshotSteps

PAGE = pgalloc.PAGE_SIZE
SIZES = (0, 1, PAGE, 3 * PAGE + 7, 0, 100_000)
INDEX_PAGES = 1024


class NoProgress:
    def begin(self, step: str, total: int) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        pass


@pytest.fixture(autouse=True)
def no_image_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert list(temporary.iterdir()) == []


class Loaded:
    """A memory file with an index and some files, as the demo has it when it saves."""

    def __init__(self) -> None:
        self.file = MemoryFile()
        self.index = Index.allocate(self.file, len(SIZES))
        self.allocations: list[pgalloc.Allocation] = []
        self.entries: list[Entry] = []
        for number, size in enumerate(SIZES):
            contents = os.urandom(size)
            digest = hashlib.sha256(contents).digest()
            start = 0
            if size:
                allocation = self.file.allocate(-(-size // PAGE) * PAGE)
                self.allocations.append(allocation)
                with allocation.view() as view:
                    view[:size] = contents
                start = allocation.range.start
            self.index[number] = Record(digest, size, start)
            name = os.fsdecode(b"/caf\xe9 %d" % number)
            self.entries.append(Entry(number, name, size, digest.hex(), start))

    def close(self) -> None:
        for allocation in self.allocations:
            allocation.release()
        self.index.release()
        self.file.close()

    def run(self) -> Report:
        report = Report("/nowhere", 2, 1 << 30)
        SnapshotSteps(self.file, self.index.range, self.entries, report, NoProgress()).run()
        return report


@pytest.fixture
def loaded() -> Iterator[Loaded]:
    loaded = Loaded()
    yield loaded
    loaded.close()


def test_two_new_processes_find_every_file(loaded: Loaded) -> None:
    before = loaded.file.segments(), loaded.file.usage(), loaded.file.total_usage()
    report = loaded.run()
    assert report.problems == []
    assert (report.restores, report.digests_checked) == (2, 2 * len(SIZES))
    assert [step.name for step in report.steps] == ["save", "restore", "restore (background)"]
    assert (loaded.file.segments(), loaded.file.usage(), loaded.file.total_usage()) == before


def spoil_image(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]) -> None:
    """Does something to the image right after it was saved."""
    save = MemoryFile.save

    def save_then_spoil(self: MemoryFile, target: Any, **options: Any) -> None:
        save(self, target, **options)
        path = Path(target)
        path.write_bytes(spoil(path.read_bytes()))

    monkeypatch.setattr(MemoryFile, "save", save_then_spoil)


def flip(image: bytes, name: str, at: int = 0) -> dict[int, bytes]:
    """A patch that flips a bit of a field."""
    offset = next(field.offset for field in fields(image) if field.name == name) + at
    return {offset: bytes([image[offset] ^ 1])}


def test_a_flipped_bit_in_the_image_makes_both_fail(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(image: bytes) -> bytes:
        last = sum(field.name.endswith(".data") for field in fields(image)) - 1
        ((offset, byte),) = flip(image, f"extent[{last}].data").items()
        return image[:offset] + byte + image[offset + 1 :]

    spoil_image(monkeypatch, spoil)
    report = loaded.run()
    assert [problem.split(":")[0] for problem in report.problems] == [
        "restore", "restore (background)"
    ]  # fmt: skip
    assert all("SnapshotCorruptError" in problem for problem in report.problems)


def test_a_changed_file_whose_checksums_fit_is_found_by_its_digest(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SIZES[-1]

    def spoil(image: bytes) -> bytes:
        data = [field for field in fields(image) if field.name.endswith(".data")][-1]
        at = data.width - (-(-size // PAGE) * PAGE)  # the last file is the last in the image
        return forge(image, patches=flip(image, data.name, at))

    spoil_image(monkeypatch, spoil)
    report = loaded.run()
    assert report.problems == [
        r"restore: wrong digest: /caf\xe9 5", r"restore (background): wrong digest: /caf\xe9 5"
    ]  # fmt: skip
    assert report.digests_checked == 2 * (len(SIZES) - 1)


def test_pages_that_the_hook_forgets_are_found_unadopted(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(index: FileRange, entries: list[Entry]) -> bytes:
        return encode(index, entries[:-1])

    monkeypatch.setattr(demo_snapshot, "encode", forgetful)
    problems = loaded.run().problems
    assert problems == [
        f"{name}: {problem}"
        for name in ("restore", "restore (background)")
        for problem in (
            "100 KiB were left unadopted",
            "the account ended at 100 KiB, the kernel at 100 KiB, with 1 segment",
        )
    ]


def test_a_save_that_fails_is_one_problem(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MemoryFile, target: object, **options: object) -> None:
        raise OSError(28, "write: No space left on device")

    monkeypatch.setattr(MemoryFile, "save", refuse)
    report = loaded.run()
    assert len(report.problems) == 1
    assert "No space left on device" in report.problems[0]
    assert not report.ok


def test_a_save_that_changes_the_account_is_a_problem(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = MemoryFile.save

    def save_then_touch(self: MemoryFile, target: Any, **options: Any) -> None:
        save(self, target, **options)
        with loaded.file.map_range(loaded.index.range) as view:
            view[-1] = 1

    monkeypatch.setattr(MemoryFile, "save", save_then_touch)
    assert "save changed the account" in loaded.run().problems[0]


def test_a_process_that_dies_is_a_problem(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert loaded.run().problems == [
        "restore: the new process ended with status 1",
        "restore (background): the new process ended with status 1",
    ]


def test_a_process_that_talks_nonsense_is_a_problem(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    assert "nothing that can be understood" in loaded.run().problems[0]


def test_a_process_that_hangs_is_a_problem(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_snapshot, "RESTORE_S", 0.01)
    assert "was not done after" in loaded.run().problems[0]


@pytest.mark.parametrize("mode", demo_restore.MODES)
def test_the_other_process_as_a_function(loaded: Loaded, tmp_path: Path, mode: str) -> None:
    image = str(tmp_path / "image")
    payload = encode(loaded.index.range, loaded.entries)
    loaded.file.save_hook(HOOK, save=lambda: payload, restore=lambda mf, data: None)
    loaded.file.save(image)
    loaded.file.update_usage()
    held = pgalloc.memory_accounting().total()
    outcome = demo_restore.restore(image, mode, threads=3)
    # The saved file is open in this process, too, so the account does not end at zero here.
    assert outcome.problems == [f"the process's account ended at {held // 1024} KiB"]
    assert outcome.files == len(SIZES)
    assert outcome.first_file_s is not None
    assert pgalloc.memory_accounting().total() == held


def test_an_image_without_the_hook(tmp_path: Path) -> None:
    with MemoryFile() as memory_file:
        memory_file.save(tmp_path / "image")
    outcome = demo_restore.restore(str(tmp_path / "image"), "eager", threads=1)
    assert outcome.problems == ["the restore hook was not called"]
    missing = demo_restore.restore(str(tmp_path / "missing"), "eager", threads=1)
    assert "No such file" in missing.problems[0]


def test_the_catalogue_gives_back_what_went_in_one_by_one() -> None:
    entries = [
        Entry(0, os.fsdecode(b"/new\nline \xff"), 5, "ab", 8192),
        Entry(7, "/empty", 0, "cd", 0),
    ]
    payload = encode(FileRange(0, 4096), entries)
    assert payload.isascii()
    index, decoded = decode(payload)
    assert (index, list(decoded)) == (FileRange(0, 4096), entries)
    assert [entry.range for entry in entries] == [FileRange(8192, 12288), None]
    _, broken = decode(payload + b"\nno json")
    assert next(broken) == entries[0]


def test_an_outcome_survives_the_pipe() -> None:
    outcome = Outcome(["one", "tw\u00f6"], 3, 0.25, 0.5)
    assert Outcome.from_json(outcome.to_json()) == outcome
    for nonsense in ("", "[]", "{}x", '{"surprise": 1}'):
        with pytest.raises((ValueError, TypeError)):
            Outcome.from_json(nonsense)
