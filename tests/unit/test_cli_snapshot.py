"""``pgalloc inspect`` and ``pgalloc verify``: sound images, damaged ones, and what is no image."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from image_model import ZSTD, Hook, Image, Usage, build, extents_of, fields, forge

import pgalloc
from pgalloc import MemoryFile, MemoryKind
from pgalloc.cli.app import cli
from pgalloc.cli.images.verify_command import _Steps

PAGE = pgalloc.PAGE_SIZE
MIB = 1 << 20


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def last_line(result: Result) -> str:
    return result.output.rstrip().splitlines()[-1]


def written(path: Path, image: Image | bytes) -> Path:
    path.write_bytes(build(image) if isinstance(image, Image) else image)
    return path


def large() -> Image:
    """40 extents, 20 hooks, 5 memory cgroups, two encodings, and text that a terminal must fear."""
    noise = random.Random(1)
    raw = {n * 4 * MIB: noise.randbytes(PAGE) for n in range(20)}
    packed = {n * 4 * MIB + k * PAGE: b"\1" * PAGE for n in range(20, 40) for k in range(n)}
    usage = [
        Usage(n * 4 * MIB, (n + 1) * 4 * MIB, references=1 + n % 3, memcg_id=n % 6)
        for n in range(40)
    ]
    hooks = [Hook(f"hook {n:02}", bytes(n * 100)) for n in range(19)]
    hooks.insert(0, Hook("[bold]\x1b[31m\nred", b"x" * 3000))
    extents = extents_of(raw, PAGE) + extents_of(packed, PAGE, ZSTD)
    return Image(PAGE, 160 * MIB, usage, "[red]\x1b]0;title\7", hooks, extents, 7)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What a MemoryFile saves: 1 MiB that is not zero in 16 MiB, two kinds, a hook."""
    path = tmp_path / "saved.pgimg"
    with MemoryFile(restore_id="the cache") as memory_file:
        data = memory_file.allocate(12 * MIB, kind=MemoryKind.PAGE_CACHE, memcg_id=7)
        other = memory_file.allocate(4 * MIB, kind=MemoryKind.TMPFS)
        with data.clone(), data.view() as view:
            view[:MIB] = os.urandom(MIB)
            view[2 * MIB] = 0  # commits a page of zeros
            memory_file.save_hook("owner", save=lambda: b"12345", restore=lambda mf, data: None)
            memory_file.save(path)
        data.release()
        other.release()
    return path


def test_inspect_shows_what_was_saved(saved: Path) -> None:
    result = run("inspect", saved)
    assert result.exit_code == 0, result.output
    facts = dict(line.split("  ", 1) for line in map(str.strip, result.output.splitlines())
                 if "  " in line)  # fmt: skip
    assert facts["format version"].strip() == "1"
    assert facts["restore_id"].strip() == "the cache"
    assert facts["bytes stored"].strip() == "1 MiB"
    assert facts["bytes represented"].strip() == "16 MiB"
    assert facts["zero pages skipped"].strip() == "1, 4 KiB"
    assert facts["PAGE_CACHE"].split() == ["1", "12", "MiB", *facts["PAGE_CACHE"].split()[3:]]
    assert facts["PAGE_CACHE"].split()[-2:] == ["2", "7"]  # references, memory cgroup
    assert facts["TMPFS"].split()[-2:] == ["1", "none"]
    assert facts["owner"].strip() == "5 B"


def test_inspect_as_json(saved: Path) -> None:
    result = run("inspect", saved, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    info = pgalloc.inspect_image(saved)
    assert found["image_bytes"] == saved.stat().st_size == info.image_bytes
    assert (found["represented_bytes"], found["stored_bytes"]) == (16 * MIB, MIB)
    assert (found["stored_pages"], found["zero_pages_skipped"]) == (256, 1)
    assert found["hooks"] == {"owner": 5}
    assert [kind["kind"] for kind in found["kinds"]] == ["PAGE_CACHE", "TMPFS"]
    assert found["kinds"][0]["memcg_ids"] == [7]
    assert [s["start"] for s in found["segments"]] == [s.start for s in info.segments]
    assert [e["offset"] for e in found["extents"]] == [e.offset for e in info.extents]
    assert sum(e["stored_pages"] for e in found["extents"]) == 256


def test_tables_are_bounded_and_safe_to_print(tmp_path: Path) -> None:
    result = run("inspect", written(tmp_path / "large", large()))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) < 80
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert not {"\x1b", "\7"} & set(result.output)
    assert r"[bold]\x1b[31m\nred" in result.output
    assert r"[red]\x1b]0;title\x07" in result.output
    for text in ("The 8 largest extents; 32 more", "and 4 hooks more", "1 to 3", "5 of them"):
        assert text in result.output
    found = json.loads(run("inspect", "--json", tmp_path / "large").output)
    assert (len(found["extents"]), len(found["hooks"])) == (40, 20)


def test_an_image_of_nothing(tmp_path: Path) -> None:
    image = written(tmp_path / "empty", Image(PAGE, 0))
    assert run("inspect", image).exit_code == 0
    result = run("verify", image)
    assert last_line(result).startswith("verify: OK — 0 extents, 0 B stored for 0 B represented")
    assert result.exit_code == 0


def test_verify_says_what_was_verified(saved: Path, tmp_path: Path) -> None:
    result = run("verify", saved)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "verify: OK — 1 extent, 1 MiB stored for 16 MiB represented: every checksum matched"
    ]
    result = run("verify", written(tmp_path / "large", large()))
    assert last_line(result).startswith("verify: OK — 40 extents, ")
    assert "for 160 MiB represented" in last_line(result)


def damaged(how: str) -> bytes:
    image = build(large())
    data = next(field for field in fields(image) if field.name == "extent[3].data")
    flipped = bytearray(image)
    flipped[data.offset] ^= 1
    return {
        "nothing": b"",
        "text": b"This is no image.\n" * 1000,
        "zeros": bytes(64 * PAGE),
        "cut": image[:-PAGE],
        "begun": image[: PAGE // 2],
        "surplus": image + b"\0",
        "flipped": bytes(flipped),
        "version": forge(image, {"header.version": 2}),
        "huge": forge(image, {"trailer.extent_count": 2**60, "index.extent_count": 2**60}),
        "overlap": forge(image, {"usage[1].start": 0}),
        "twice": forge(image, {"hook[2].name": b"hook 00"}),
    }[how]


DAMAGE = [
    "nothing", "text", "zeros", "cut", "begun", "surplus", "flipped", "version", "huge", "overlap",
    "twice",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_verify_refuses_in_one_line(tmp_path: Path, how: str) -> None:
    result = run("verify", written(tmp_path / "image", damaged(how)))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("verify: FAILED — ")
    assert len(lines[0]) > len("verify: FAILED — ")


@pytest.mark.parametrize("how", DAMAGE)
def test_inspect_refuses_all_but_what_only_the_pages_tell(tmp_path: Path, how: str) -> None:
    image = written(tmp_path / "image", damaged(how))
    for arguments in (["inspect", image], ["inspect", "--json", image]):
        result = run(*arguments)
        if how == "flipped":
            assert result.exit_code == 0
            continue
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("inspect: FAILED — ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_file_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "locked").touch()
    really_open = os.open

    def guarded(path: str, *rest: object, **options: object) -> int:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", guarded)
    for name, reason in [
        ("missing", "No such file or directory"),
        ("new\nline", r"new\nline: No such file"),
        (".", "is a directory"),
        ("locked", "Permission denied"),
    ]:
        result = run(command, f"{tmp_path}/{name}")
        assert (result.exit_code, result.stdout) == (2, "")
        assert reason in result.stderr
    assert run(command).exit_code == 2
    assert run(command, tmp_path / "locked", "more").exit_code == 2


def piped(command: str, name: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """As a shell pipes it."""
    line = [sys.executable, "-m", "pgalloc", command, name]
    return subprocess.run(line, input=data, capture_output=True)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_standard_input(saved: Path, command: str, name: str) -> None:
    image = saved.read_bytes()
    done = piped(command, name, image)
    assert done.returncode == 0, done.stderr
    assert (b"the cache" in done.stdout) == (command == "inspect")
    for wrong, reason in [
        (image + b"x", b"bytes follow after the image"),
        (image[:-1], b"ends early"),
        (b"", b"ends early"),
    ]:
        done = piped(command, name, wrong)
        assert done.returncode == 1
        assert reason in done.stdout + done.stderr


def test_standard_input_that_is_a_file(saved: Path, tmp_path: Path) -> None:
    """It is read from where it is; and a file of that name can be had all the same."""
    with open(saved, "rb") as file:
        line = [sys.executable, "-m", "pgalloc", "inspect", "-"]
        done = subprocess.run(line, stdin=file, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("standard input\n")
    (tmp_path / "-").write_bytes(b"no image")
    line = [sys.executable, "-m", "pgalloc", "verify", "./-"]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_without_standard_input(command: str) -> None:
    line = f"exec {sys.executable} -m pgalloc {command} - <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no standard input" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_pipe_by_name(saved: Path, tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_bytes(saved.read_bytes()), daemon=True
    )
    writer.start()
    result = run(command, tmp_path / "pipe")
    writer.join()
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_names_that_are_not_utf8(tmp_path: Path, command: str) -> None:
    image = written(tmp_path / os.fsdecode(b"caf\xe9"), Image(PAGE, 0))
    result = run(command, image)
    assert result.exit_code == 0, result.output
    missing = run(command, tmp_path / os.fsdecode(b"th\xe9"))
    assert r"th\xe9" in missing.stderr


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "MemoryError"),
        (pgalloc.SnapshotCorruptError("hook \x1b[31m\n appears twice"), r"hook \x1b[31m\n appears"),
    ],
)
def test_whatever_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(source: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(pgalloc, "inspect_image", refuse)
    monkeypatch.setattr(pgalloc, "verify_image", refuse)
    image = written(tmp_path / "image", Image(PAGE, 0))
    for command in ("inspect", "verify"):
        result = run(command, image)
        assert result.exit_code == 1
        assert len(result.output.splitlines()) == 1
        assert f"{command}: FAILED — {reason}" in result.output


class Bar:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.done = 0

    def begin(self, step: str, total: int) -> None:
        self.steps.append((step, total))
        self.done = 0

    def advance(self, nbytes: int) -> None:
        self.done += nbytes


def test_progress_goes_from_nothing_to_all(saved: Path) -> None:
    bar = Bar()
    seen: list[tuple[int, int]] = []
    steps = _Steps(bar)  # type: ignore[arg-type]

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        steps(done, total)

    info = pgalloc.verify_image(saved, progress=progress)
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert bar.steps == [("verify", seen[0][1])]
    assert bar.done == seen[0][1] <= info.image_bytes


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert "inspect" in result.output
    assert "verify" in result.output


def test_in_a_pipe_that_knows_only_ascii(saved: Path) -> None:
    for command, last in (("verify", b"verify: OK - 1 extent, "), ("inspect", b"")):
        done = subprocess.run(
            [sys.executable, "-m", "pgalloc", command, saved],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
        assert done.stdout.strip().splitlines()[-1].startswith(last)
