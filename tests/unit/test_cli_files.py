"""Which files the demo takes, and how it reads them while things happen to them."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from pgalloc.cli.demo.reading import CannotRead, PaddingReader, digest_on_disk, opened
from pgalloc.cli.files import Found, find_files

PAGE = 4096


def find(path: Path | str, limit: int = 1 << 30, without: tuple[str, ...] = ()) -> Found:
    return find_files(str(path), limit=limit, page_size=PAGE, without=without)


def names(found: Found) -> list[str]:
    return [os.path.basename(file.path) for file in found.files]


def reasons(found: Found) -> dict[str, str]:
    return {os.path.basename(skipped.path): skipped.reason for skipped in found.skipped}


def test_every_regular_file_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a", "c/d/e", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(find(tmp_path)) == ["a", "10", "2", "e", "z"]
    assert find(tmp_path).nbytes == 5 * PAGE


def test_a_single_file_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "link").symlink_to("file")
    assert (names(find(tmp_path / "file")), find(tmp_path / "file").nbytes) == (["file"], 2 * PAGE)
    assert names(find(tmp_path / "link")) == ["file"]


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        found = find(tmp_path)
    assert found.files == []
    assert reasons(found) == {
        "fifo": "not a regular file",
        "socket": "not a regular file",
        "loop": "symbolic link, not followed",
        "dangling": "symbolic link, not followed",
    }


def test_empty_folder_and_empty_file(tmp_path: Path) -> None:
    assert find(tmp_path) == Found()
    (tmp_path / "empty").touch()
    assert (names(find(tmp_path)), find(tmp_path).nbytes) == (["empty"], 0)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_text("x")
    assert names(find(tmp_path)) == [name]


def test_the_limit_leaves_out_what_does_not_fit_but_takes_what_does(tmp_path: Path) -> None:
    for name, size in (("a", PAGE), ("b", 3 * PAGE), ("c", PAGE), ("d", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    found = find(tmp_path, limit=2 * PAGE)
    assert (names(found), found.nbytes) == (["a", "c"], 2 * PAGE)
    assert reasons(found) == {"b": "over --limit", "d": "over --limit"}


def test_folders_to_pass_over(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/x").touch()
    (tmp_path / "y").touch()
    assert names(find(tmp_path, without=("site-packages",))) == ["y"]


def test_a_folder_that_cannot_be_listed_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/x").touch()
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find(tmp_path)
    assert (names(found), reasons(found)) == (["x"], {"shut": "Permission denied"})


@pytest.mark.parametrize("kind", ["missing", "loop", "below a file"])
def test_a_path_that_cannot_be_looked_at_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = {"missing": "missing", "loop": "loop", "below a file": "file/x"}[kind]
    with pytest.raises(OSError, match=path):
        find(tmp_path / path)


def test_the_reader_fills_the_file_and_reports_the_tail_as_filled(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    buffer = bytearray(PAGE)
    with opened(str(tmp_path / "file")) as (fd, identity):
        reader = PaddingReader(fd, identity.size)
        view = memoryview(buffer)
        assert reader.readinto(view) == 3000
        assert reader.readinto(view[3000:]) == PAGE - 3000
    assert buffer == b"abc" * 1000 + bytes(PAGE - 3000)


def test_the_reader_ends_early_where_the_file_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with opened(str(tmp_path / "file")) as (fd, _):
        reader = PaddingReader(fd, 10)
        assert reader.readinto(memoryview(bytearray(PAGE))) == 3
        assert reader.readinto(memoryview(bytearray(PAGE))) == 0


def test_a_change_while_open_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")

    def read_while_it_changes() -> None:
        with opened(str(file)):
            file.write_bytes(b"abcd")

    with pytest.raises(CannotRead, match="changed"):
        read_while_it_changes()


def test_open_refuses_what_took_the_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name, reason in (("fifo", "not a regular"), ("link", "symbolic"), ("gone", "vanished")):
        with pytest.raises(CannotRead, match=reason), opened(str(tmp_path / name)):
            pass


def test_digest_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    data = os.urandom(3_000_001)
    file.write_bytes(data)
    with opened(str(file)) as (_, identity):
        pass
    assert digest_on_disk(str(file), identity) == hashlib.sha256(data).digest()
    file.write_bytes(data + b"x")
    with pytest.raises(CannotRead, match="changed"):
        digest_on_disk(str(file), identity)
    file.unlink()
    with pytest.raises(CannotRead, match="vanished"):
        digest_on_disk(str(file), identity)
