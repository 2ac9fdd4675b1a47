"""What save() writes to: files that it replaces, devices, pipes and file objects, or an error."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from conftest import PAGE
from snapshots import contents, files_in, image_of, random_file

import pgalloc
from pgalloc import MemoryFile, OptionError
from pgalloc.testing import FaultPlan

COMPRESSIONS = [None, "zstd"]
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture
def filled() -> Iterator[MemoryFile]:
    mf, _ = random_file(60, pages_max=300)
    with mf:
        yield mf


def hooked(mf: MemoryFile) -> list[str]:
    """What is called once something is about to be written."""
    called: list[str] = []

    def save() -> bytes:
        called.append("hook")
        return b""

    mf.save_hook("hook", save=save)
    return called


# --- what cannot be replaced ---------------------------------------------------------------------


def a_folder(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


def beyond_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "image"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fsencode(folder / "socket"))
    return folder / "socket"


def a_fifo_without_a_reader(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


IMPOSSIBLE: list[tuple[Callable[[Path], Path], int]] = [
    (a_folder, errno.EISDIR),
    (lambda folder: folder / ".", errno.EISDIR),
    (lambda folder: folder / ("n" * 256), errno.ENAMETOOLONG),
    (lambda folder: folder / "missing" / "image", errno.ENOENT),
    (beyond_a_file, errno.ENOTDIR),
    (a_loop, errno.ELOOP),
    (a_socket, errno.ENXIO),
    (a_fifo_without_a_reader, errno.ENXIO),
]


@pytest.mark.parametrize(("make", "error"), IMPOSSIBLE)
def test_what_cannot_be_written_fails_at_once(
    tmp_path: Path, mf: MemoryFile, make: Callable[[Path], Path], error: int
) -> None:
    """Before any hook is called; and nothing has changed."""
    target = make(tmp_path)
    before = {path: os.lstat(path).st_mode for path in tmp_path.iterdir()}
    called = hooked(mf)
    for form in (target, str(target), os.fsencode(target)):
        with pytest.raises(OSError) as caught:
            mf.save(form)
        assert caught.value.errno == error
        assert caught.value.filename == os.fspath(form)
        assert str(caught.value).startswith(f"[Errno {error}] save: ")
    assert called == []
    assert {path: os.lstat(path).st_mode for path in tmp_path.iterdir()} == before


@as_root
def test_a_mount_point_fails_at_once(tmp_path: Path, mf: MemoryFile) -> None:
    """As a file that is bound into a container: nothing can be renamed onto it."""
    (tmp_path / "image").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"bound")
    code = """
import subprocess, sys, pgalloc
subprocess.check_call(["mount", "--make-rprivate", "/"])
subprocess.check_call(["mount", "--bind", "other", "image"])
mf = pgalloc.MemoryFile()
mf.save_hook("hook", save=lambda: sys.exit("called"))
try:
    mf.save("image")
except OSError as error:
    print(error.errno, error.filename)
"""
    command = ["unshare", "-m", sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out == f"{errno.EBUSY} image\n"
    assert files_in(tmp_path) == {"image", "other"}


def test_what_is_no_target(mf: MemoryFile, tmp_path: Path) -> None:
    class PathLike:
        def __init__(self, path: Any) -> None:
            self.path = path

        def __fspath__(self) -> Any:
            if isinstance(self.path, BaseException):
                raise self.path
            return self.path

    with pytest.raises(ZeroDivisionError):
        mf.save(PathLike(ZeroDivisionError()))
    with pytest.raises(TypeError):
        mf.save(PathLike(5))
    with pytest.raises(OptionError, match="NUL"):
        mf.save(tmp_path / "a\0b")
    with pytest.raises(TypeError, match="binary"):
        mf.save(io.StringIO())
    with open(tmp_path / "text", "w") as text, pytest.raises(TypeError, match="binary"):
        mf.save(text)
    called = hooked(mf)
    with open(tmp_path / "text", "rb") as source, pytest.raises(io.UnsupportedOperation) as caught:
        mf.save(source)
    assert (called, caught.value.filename) == ([], str(tmp_path / "text"))
    mf.save(PathLike(os.fsencode(tmp_path / "bytes")))
    pgalloc.verify_image(tmp_path / "bytes")


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_a_new_image_has_the_mode_of_the_umask(tmp_path: Path, mf: MemoryFile, umask: int) -> None:
    before = os.umask(umask)
    try:
        mf.save(tmp_path / "image")
        with FaultPlan("open", errno.EOPNOTSUPP, times=1):  # no files without a name
            mf.save(tmp_path / "named")
    finally:
        os.umask(before)
    for name in ("image", "named"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_mode_and_owners_of_a_replaced_image_stay(
    tmp_path: Path, mf: MemoryFile, mode: int
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    os.link(image, tmp_path / "other name")
    os.chmod(image, mode)
    os.chown(image, 1234, 5678)
    mf.save(image)
    pgalloc.verify_image(image)
    status = image.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 1234, 5678)
    assert (tmp_path / "other name").read_bytes() == b"old"


@as_root
def test_a_folder_that_hands_its_group_on(tmp_path: Path, mf: MemoryFile) -> None:
    os.chown(tmp_path, -1, 5678)
    os.chmod(tmp_path, 0o2755)
    mf.save(tmp_path / "image")
    assert (tmp_path / "image").stat().st_gid == 5678


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As the attribute has it: tag, permissions, user or group."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NAME = "system.posix_acl_access"
ANY = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20


def test_access_control_lists_stay(tmp_path: Path, mf: MemoryFile) -> None:
    """Without it, the mask in the mode would be permissions of the group."""
    image = tmp_path / "image"
    image.write_bytes(b"old")
    entries = acl(
        *((USER_OBJ, 6, ANY), (USER, 6, 1234), (GROUP_OBJ, 0, ANY), (MASK, 6, ANY), (OTHER, 0, ANY))
    )
    os.setxattr(image, NAME, entries)
    os.setxattr(image, "user.note", b"goes")
    mf.save(image)
    assert os.getxattr(image, NAME) == entries
    assert os.listxattr(image) == [NAME]


def test_what_a_folder_gives_to_new_files_is_not_for_old_ones(
    tmp_path: Path, mf: MemoryFile
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    image.chmod(0o660)
    entries = acl(
        *((USER_OBJ, 7, ANY), (USER, 7, 1234), (GROUP_OBJ, 7, ANY), (MASK, 7, ANY), (OTHER, 0, ANY))
    )
    os.setxattr(tmp_path, "system.posix_acl_default", entries)
    mf.save(image)
    assert os.listxattr(image) == []
    assert stat.S_IMODE(image.stat().st_mode) == 0o660
    mf.save(tmp_path / "new")
    assert os.listxattr(tmp_path / "new") == [NAME]


def test_where_a_link_leads_to_nothing_the_image_is_made(tmp_path: Path, mf: MemoryFile) -> None:
    (tmp_path / "link").symlink_to("image")
    mf.save(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "image"
    pgalloc.verify_image(tmp_path / "image")


@as_root
def test_other_users(tmp_path: Path) -> None:
    """Folders that are not to be written to, or like /tmp, are errors; else what can stay does."""
    for name, mode in (("closed", 0o755), ("sticky", 0o1777), ("open", 0o777)):
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(mode)
        (folder / "image").write_bytes(b"old")
        (folder / "image").chmod(0o664)
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # up to /tmp, which is open to all
        folder.chmod(folder.stat().st_mode | 0o011)

    def save() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with MemoryFile() as mf:
            called = hooked(mf)
            for target, error in [
                ("closed/image", errno.EACCES),
                ("closed/new", errno.EACCES),
                ("sticky/image", errno.EPERM),
            ]:
                with pytest.raises(PermissionError) as caught:
                    mf.save(tmp_path / target)
                assert (caught.value.errno, caught.value.filename) == (
                    error,
                    str(tmp_path / target),
                )
            assert called == []
            mf.save(tmp_path / "sticky" / "own")
            mf.save(tmp_path / "sticky" / "own")
            mf.save(tmp_path / "open" / "image")

    in_child(save)
    assert files_in(tmp_path / "sticky") == {"image", "own"}
    # It is another group's now, which may not read more than all others.
    status = (tmp_path / "open" / "image").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o604, NOBODY, NOBODY)


@as_root
def test_a_full_disk(tmp_path: Path, filled: MemoryFile) -> None:
    code = """
import os, subprocess, sys, errno, pgalloc
subprocess.check_call(["mount", "--make-rprivate", "/"])
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=1M", "none", sys.argv[1]])
target = sys.argv[1] + "/image"
mf = pgalloc.MemoryFile()
mf.save(target)
old = open(target, "rb").read()
mf.map_range(mf.allocate_range(4 << 20))[:] = b"x" * (4 << 20)
for compression in (None, "zstd"):
    pages = mf.map_range(mf.allocate_range(4 << 20))
    pages[:] = os.urandom(4 << 20)
    try:
        mf.save(target, compression=compression)
    except OSError as error:
        print(error.errno == errno.ENOSPC, error.filename == target, str(error).split(":")[0])
    assert open(target, "rb").read() == old
    assert os.listdir(sys.argv[1]) == ["image"]
"""
    command = ["unshare", "-m", sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == 2 * "True True [Errno 28] save\n"


@as_root
def test_without_proc(tmp_path: Path) -> None:
    code = """
import os, sys, pgalloc
mf = pgalloc.MemoryFile()
a = mf.allocate(pgalloc.PAGE_SIZE)
a.view()[:3] = b"abc"
for compression in (None, "zstd"):
    mf.save("image", compression=compression)
    assert pgalloc.verify_image("image").stored_pages == 1
assert os.listdir() == ["image"]
print("saved")
"""
    hide = 'mount --make-rprivate / && mount -t tmpfs none /proc && exec "$0" -c "$1"'
    command = ["unshare", "-m", "sh", "-c", hide, sys.executable, code]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out == "saved\n"


def test_the_backing_of_a_live_file(tmp_path: Path) -> None:
    pages, other = tmp_path / "pages", tmp_path / "other"
    (tmp_path / "link").symlink_to(pages)
    with MemoryFile(pages) as mf, MemoryFile(other) as second:
        view = mf.map_range(mf.allocate_range(PAGE))
        view[:3] = b"abc"
        for target in (pages, tmp_path / "link", other, f"/proc/self/fd/{mf.fileno()}"):
            with pytest.raises(OptionError, match=f"{str(target)!r} is the backing"):
                mf.save(target)
        with open(other, "r+b") as file:
            for backing in (mf.file, file):
                with pytest.raises(OptionError, match=f"{backing.name!r} is the backing"):
                    mf.save(backing)
        assert bytes(view[:3]) == b"abc"
        view.release()
        second.close()
        mf.save(other)  # it is no longer in use
        pgalloc.verify_image(other)


# --- devices, pipes, descriptors -----------------------------------------------------------------


@as_root
def test_devices_are_written_to(tmp_path: Path, filled: MemoryFile) -> None:
    for name, minor in (("null", 3), ("full", 7)):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    (tmp_path / "link").symlink_to(tmp_path / "null")
    filled.save(tmp_path / "null")
    filled.save(tmp_path / "link", compression="zstd")
    with pytest.raises(OSError) as caught:
        filled.save(tmp_path / "full")
    assert (caught.value.errno, caught.value.filename) == (
        errno.ENOSPC,
        str(tmp_path / "full"),
    )
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in ("null", "full"))
    assert files_in(tmp_path) == {"null", "full", "link"}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_fifo_with_a_reader(tmp_path: Path, filled: MemoryFile, compression: str | None) -> None:
    """More than the pipe holds: it is waited for, though it was opened in non-blocking mode."""
    os.mkfifo(tmp_path / "fifo")
    read: list[bytes] = []
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)  # without one, the reader would be at the end
    os.set_blocking(reader, True)
    with open(reader, "rb") as file:
        thread = threading.Thread(target=lambda: read.append(file.read()))
        thread.start()
        filled.save(tmp_path / "fifo", compression=compression)
        os.close(writer)
        thread.join()
    assert read == [image_of(filled, compression=compression)]


SAVES = """
import sys, pgalloc
mf = pgalloc.MemoryFile()
mf.save(sys.argv[1])
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(tmp_path: Path, name: str) -> None:
    """Whatever it is, it is written to from where it is."""
    command = [sys.executable, "-c", SAVES, name]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    assert pgalloc.verify_image(io.BytesIO(piped)).image_bytes == len(piped)
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        subprocess.run(command, stdout=file, check=True)
        file.write(b"after")
        file.seek(0)
        assert file.read() == b"before" + piped + b"after"
    here, there = socket.socketpair()
    with here, there:
        subprocess.run(command, stdout=there, check=True)
        there.close()
        with here.makefile("rb") as received:
            assert received.read() == piped


def test_a_descriptor_that_is_not_for_writing(mf: MemoryFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with open(tmp_path / "file", "rb") as file, pytest.raises(OSError) as caught:
        mf.save(f"/proc/self/fd/{file.fileno()}")
    assert caught.value.errno == errno.EBADF
    assert (tmp_path / "file").read_bytes() == b"old"


# --- file objects --------------------------------------------------------------------------------


class Upload:
    """Takes everything and says nothing of it, as paramiko's files do."""

    def __init__(self, result: Callable[[int], Any] = lambda size: None) -> None:
        self.got = bytearray()
        self.result = result

    def write(self, data: Any) -> Any:
        self.got += data
        return self.result(len(data))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_write_returns_none(filled: MemoryFile, compression: str | None) -> None:
    upload = Upload()
    filled.save(upload, compression=compression)
    assert bytes(upload.got) == image_of(filled, compression=compression)


@pytest.mark.parametrize("result", ["5", 5.0, b"5"])
def test_write_returns_no_number(mf: MemoryFile, result: Any) -> None:
    with pytest.raises(TypeError, match="write"):
        mf.save(Upload(lambda size: result))


def test_write_returns_a_wrong_number(mf: MemoryFile) -> None:
    with pytest.raises(OSError, match="returned") as caught:
        mf.save(Upload(lambda size: size + 1))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "<Upload>")


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_non_blocking_files_are_waited_for(filled: MemoryFile, kind: str, buffering: int) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = (end.detach() for end in ends)
    os.set_blocking(writer, False)
    read: list[bytes] = []
    with open(reader, "rb") as source:
        thread = threading.Thread(target=lambda: read.append(source.read()))
        with open(writer, "wb", buffering=buffering) as target:
            thread.start()
            filled.save(target)
            os.set_blocking(writer, True)  # for what is left in the buffer
        thread.join()
    assert read == [image_of(filled)]


def test_a_class_that_does_not_say_that_it_can_be_written(mf: MemoryFile) -> None:
    class Counter(io.RawIOBase):
        count = 0

        def write(self, data: Any) -> int:
            self.count += len(data)
            return len(data)

    counter = Counter()
    assert not counter.writable()
    mf.save(counter)
    assert counter.count == len(image_of(mf))


class Sleepy(io.RawIOBase):
    """In non-blocking mode, without a descriptor."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        return None


def test_what_cannot_be_waited_for(mf: MemoryFile) -> None:
    with pytest.raises(BlockingIOError) as caught:
        mf.save(Sleepy())
    assert caught.value.filename == "<Sleepy>"


def test_a_member_of_an_archive(filled: MemoryFile, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive, archive.open("image", "w") as member:
        filled.save(member)
    with (
        zipfile.ZipFile(tmp_path / "zip") as archive,
        archive.open("image") as found,
        MemoryFile.restore(found) as again,
    ):
        assert contents(again) == contents(filled)


def test_files_that_are_appended_to(filled: MemoryFile, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before")
    with open(tmp_path / "log", "ab") as log:
        filled.save(log)
        filled.save(log)
    assert (tmp_path / "log").read_bytes() == b"before" + 2 * image_of(filled)


# --- without threads -----------------------------------------------------------------------------

WITHOUT_THREADS = """
import io, os, resource, sys, pgalloc
mf = pgalloc.MemoryFile()
for size in (pgalloc.PAGE_SIZE, 3 << 20):
    mf.map_range(mf.allocate_range(size))[:] = os.urandom(size // 2) + bytes(size // 2)
images = {}
for compression in (None, "zstd"):
    images[compression] = io.BytesIO()
    mf.save(images[compression], compression=compression)
os.setgroups([]), os.setgid(23456), os.setuid(23456)  # none but this process is theirs
hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
import threading
try:
    threading.Thread(target=print).start()
    sys.exit("there are threads")
except RuntimeError:
    pass
for compression in (None, "zstd"):
    target = io.BytesIO()
    mf.save(target, compression=compression)
    assert target.getvalue() == images[compression].getvalue()
    mf.save("image", compression=compression)
    assert open("image", "rb").read() == target.getvalue()
    try:
        with open("/dev/full", "wb", buffering=0) as full:
            mf.save(full, compression=compression)
    except OSError as error:
        assert error.errno == 28 and error.filename == "/dev/full", error
threads = len(os.listdir("/proc/self/task")) + 1  # one for each MemoryFile, and no other
resource.setrlimit(resource.RLIMIT_NPROC, (threads, hard))
for compression in (None, "zstd"):
    mf.save("image", compression=compression)
    for options in ({}, {"background": True}):
        with pgalloc.MemoryFile.restore("image", **options) as again:
            assert again.wait_loaded(20)
            for segment in mf.segments():
                range_ = pgalloc.FileRange(segment.start, segment.end)
                assert bytes(again.map_range(range_)) == bytes(mf.map_range(range_))
    assert pgalloc.verify_image("image").stored_pages
print("saved")
"""


@as_root
def test_where_no_thread_can_be_started(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    command = [sys.executable, "-c", WITHOUT_THREADS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr


def test_a_worker_that_cannot_start_is_no_error(
    filled: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some of the threads are to be had, they do it."""
    from pgalloc.snapshot import saving

    started: list[int] = []

    class Thread(saving.Thread):
        def start(self) -> None:
            if started:
                raise RuntimeError("can't start new thread")
            started.append(1)
            super().start()

    expected = image_of(filled, compression="zstd")
    monkeypatch.setattr(saving, "is_ours", lambda error: True)
    monkeypatch.setattr(saving, "Thread", Thread)
    assert image_of(filled, compression="zstd") == expected
    assert len(started) == 1


def test_what_hooks_and_targets_raise_is_theirs(mf: MemoryFile, tmp_path: Path) -> None:
    """Their errors stay as they are."""

    def fail() -> bytes:
        raise OSError(errno.EPERM, "mine")

    class Failing:
        name = "its name"

        def write(self, data: Any) -> int:
            raise OSError(errno.EPERM, "mine")

    with pytest.raises(PermissionError, match=re.escape("[Errno 1] mine")) as caught:
        mf.save(Failing())
    assert caught.value.filename is None
    mf.save_hook("fails", save=fail)
    with pytest.raises(PermissionError, match=re.escape("[Errno 1] mine")) as caught:
        mf.save(tmp_path / "image")
    assert caught.value.filename is None
    assert files_in(tmp_path) == set()
