"""What restore(), inspect_image() and verify_image() read: plain files, and bytes in order."""

from __future__ import annotations

import bz2
import errno
import gzip
import http.client
import http.server
import io
import lzma
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE
from image_model import build
from image_readers import sample
from snapshots import contents, image_of, random_file

import pgalloc
from pgalloc import (
    Allocation,
    FileRange,
    MemoryFile,
    OptionError,
    SnapshotCorruptError,
    SnapshotError,
)
from pgalloc.testing import FaultPlan

LOOKS: list[Callable[[Any], Any]] = [pgalloc.inspect_image, pgalloc.verify_image]


def numbered(number: int, *, compression: str | None = None, nbytes: int = 3 * PAGE) -> bytes:
    """An image whose pages say which it is."""
    with MemoryFile(restore_id=str(number)) as mf:
        mf.map_range(mf.allocate_range(nbytes))[:] = bytes([number]) * nbytes
        return image_of(mf, compression=compression)


def number_of(mf: MemoryFile) -> int:
    number: int = mf.map_range(FileRange(PAGE, 2 * PAGE))[7]
    assert str(number) == mf.restore_id
    return number


def restored(source: Any, **options: Any) -> int:
    with MemoryFile.restore(source, **options) as mf:
        return number_of(mf)


def looked(source: Any, look: Callable[[Any], Any]) -> int:
    return int(look(source).restore_id)


IMAGE = numbered(5)
ALL: list[Callable[[Any], int]] = [restored, *(partial(looked, look=look) for look in LOOKS)]


# --- what only seems to be a plain file ----------------------------------------------------------


class Remote(io.RawIOBase):
    """Ranges of a remote object, of which an answer brings few."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self._bytes = io.BytesIO(data)
        self._most = most

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._bytes.seek(offset, whence)

    def tell(self) -> int:
        return self._bytes.tell()

    def readinto(self, buffer: Any) -> int:
        return self._bytes.readinto(memoryview(buffer)[: self._most])


class ReadableRemote(Remote):
    """What can be buffered has to say so."""

    def readable(self) -> bool:
        return True


class OnlyReadInto:
    def __init__(self, data: bytes) -> None:
        self._bytes = io.BytesIO(data)

    def readinto(self, buffer: Any) -> int:
        return self._bytes.readinto(memoryview(buffer)[:1000])


class Shifted(io.FileIO):
    """A file object whose bytes are not those of its descriptor."""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count = super().readinto(view) or 0
        view[:count] = bytes(byte ^ 0xFF for byte in view[:count])
        return count

    def read(self, size: int | None = -1) -> bytes:
        return io.RawIOBase.read(self, -1 if size is None else size) or b""


def packed(folder: Path, module: Any) -> Any:
    with module.open(folder / module.__name__, "wb") as file:
        file.write(IMAGE)
    return module.open(folder / module.__name__)


def member(folder: Path) -> Any:
    with tarfile.open(folder / "tar", "w:gz") as archive:
        info = tarfile.TarInfo("image")
        info.size = len(IMAGE)
        archive.addfile(info, io.BytesIO(IMAGE))
    return tarfile.open(folder / "tar").extractfile("image")


def plain_member(folder: Path) -> Any:
    """Of an archive that is not compressed, whose descriptor says other bytes all the same."""
    with tarfile.open(folder / "tar", "w") as archive:
        info = tarfile.TarInfo("image")
        info.size = len(IMAGE)
        archive.addfile(info, io.BytesIO(IMAGE))
    return tarfile.open(folder / "tar").extractfile("image")


def zipped(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image", IMAGE)
    return zipfile.ZipFile(folder / "zip").open("image")


def shifted(folder: Path) -> Any:
    (folder / "shifted").write_bytes(bytes(byte ^ 0xFF for byte in IMAGE))
    return Shifted(folder / "shifted")


WRAPPED: dict[str, Callable[[Path], Any]] = {
    "gzip": lambda folder: packed(folder, gzip),
    "buffered gzip": lambda folder: io.BufferedReader(packed(folder, gzip)),
    "buffered bz2": lambda folder: io.BufferedReader(packed(folder, bz2)),
    "buffered lzma": lambda folder: io.BufferedReader(packed(folder, lzma)),
    "tar member": member,
    "member of a plain tar": plain_member,
    "zip member": zipped,
    "remote": lambda folder: Remote(IMAGE),
    "buffered remote": lambda folder: io.BufferedReader(ReadableRemote(IMAGE)),
    "readinto": lambda folder: OnlyReadInto(IMAGE),
    "derived": shifted,
    "buffered derived": lambda folder: io.BufferedReader(shifted(folder)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_only_seems_to_be_a_plain_file_is_read(tmp_path: Path, name: str) -> None:
    make = WRAPPED[name]
    assert restored(make(tmp_path)) == 5
    for look in LOOKS:
        assert looked(make(tmp_path), look) == 5
    source = make(tmp_path)
    with pytest.raises(OptionError, match="background"):
        MemoryFile.restore(source, background=True)
    assert restored(source) == 5  # nothing of it was read


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """In chunks."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(IMAGE), 5000):
            chunk = IMAGE[start : start + 5000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_answers_of_a_web_server() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for call in ALL:
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
                connection.request("GET", "/image")
                response = connection.getresponse()
                assert call(response) == 5
                assert response.read() == b""
                connection.close()
        finally:
            server.shutdown()
            thread.join()


# --- several images ------------------------------------------------------------------------------


def several() -> bytes:
    """Three images between other bytes; the last one of several extents."""
    return b"".join(
        [
            *(b"head", numbered(1), numbered(2, compression="zstd")),
            *(numbered(3, nbytes=9 << 20), b"tail"),
        ]
    )


@contextmanager
def open_file(folder: Path, data: bytes, buffering: int = -1, mode: str = "rb") -> Iterator[Any]:
    (folder / "several").write_bytes(data)
    with open(folder / "several", mode, buffering=buffering) as file:
        yield file


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("mode", "buffering"), [("rb", 0), ("rb", -1), ("r+b", -1), ("a+b", 0)])
def test_several_images_in_a_file(
    tmp_path: Path, mode: str, buffering: int, background: bool
) -> None:
    """Each call leaves the file where the next one begins, also if its buffer knows more."""
    with open_file(tmp_path, several(), buffering, mode) as file:
        file.seek(0)
        assert file.read(4) == b"head"
        for number in (1, 2, 3):
            at = file.tell()
            for look in LOOKS:
                assert looked(file, look) == number
                end = file.tell()
                file.seek(at)
            assert restored(file, background=background) == number
            assert file.tell() == end
        assert file.read() == b"tail"


def test_several_images_in_a_stream() -> None:
    for look in LOOKS:
        for source in (io.BytesIO(several()), io.BufferedReader(ReadableRemote(several()))):
            assert source.read(4) == b"head"
            assert looked(source, look) == 1
            assert restored(source) == 2
            assert looked(source, look) == 3
            assert source.read() == b"tail"


def test_images_that_stay_in_use_while_the_next_is_read(tmp_path: Path) -> None:
    """Loaded in the background, each from its own place, when the file object is closed already."""
    with open_file(tmp_path, several()[4:]) as file, pgalloc.testing.without_loaders():
        files = [MemoryFile.restore(file, background=True) for _ in range(3)]
    assert [number_of(mf) for mf in files] == [1, 2, 3]
    for mf in files:
        mf.close()


def test_what_was_just_written_is_read(tmp_path: Path) -> None:
    """Though it is still in the buffer of the file object."""
    with MemoryFile(restore_id="4") as mf, open(tmp_path / "file", "w+b") as file:
        mf.map_range(mf.allocate_range(3 * PAGE))[:] = bytes([4]) * 3 * PAGE
        mf.save(file)
        mf.save(file)
        file.seek(0)
        assert restored(file, background=True) == 4
        assert looked(file, pgalloc.verify_image) == 4
        assert file.read() == b""


def test_a_path_is_of_one_image(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(2 * IMAGE)
    for call in (restored, *LOOKS):
        with pytest.raises(SnapshotCorruptError):
            call(tmp_path / "two")


def damaged(image: bytes, at: int) -> bytes:
    return image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]


@pytest.mark.parametrize("at", [0, PAGE + 1, 2 * PAGE, 3 * PAGE, -2 * PAGE, -1])
def test_after_an_error_a_plain_file_stands_where_it_stood(tmp_path: Path, at: int) -> None:
    image = damaged(IMAGE, at % len(IMAGE))
    with open_file(tmp_path, b"head" + image + IMAGE) as file:
        file.seek(4)
        for call in (restored, pgalloc.verify_image):
            with pytest.raises(SnapshotCorruptError, match="several"):
                call(file)
            assert file.tell() == 4
        file.seek(4 + len(image))
        assert restored(file) == 5


def test_every_cut_of_an_image_among_others(tmp_path: Path) -> None:
    """Where an image ends is known only from its parts."""
    data = build(sample())
    cut = [
        size for size in range(1, len(data)) if size % PAGE in (0, 1, PAGE - 1) or size % 97 == 0
    ]
    for size in cut:
        with open_file(tmp_path, data[:size] + data) as file:
            for look in LOOKS:
                with pytest.raises(SnapshotError):
                    look(file)
                assert file.tell() == 0


# --- pipes, devices, descriptors -----------------------------------------------------------------


def written(fd: int, data: bytes) -> threading.Thread:
    """Another thread writes it and closes."""

    def write() -> None:
        with open(fd, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_pipes_by_name(tmp_path: Path) -> None:
    """A writer that waits for a reader is met once: a second one would be the end of it."""
    os.mkfifo(tmp_path / "fifo")

    def write() -> None:
        (tmp_path / "fifo").write_bytes(IMAGE)

    for call in ALL:
        thread = threading.Thread(target=write)
        thread.start()
        assert call(tmp_path / "fifo") == 5
        thread.join()
    with pytest.raises(OptionError, match="background"):
        MemoryFile.restore(tmp_path / "fifo", background=True)  # waits for no writer


def test_sockets_by_number() -> None:
    reader, writer = (end.detach() for end in socket.socketpair())
    thread = written(writer, IMAGE + IMAGE)
    for _ in range(2):
        assert restored(f"/dev/fd/{reader}") == 5
    thread.join()
    os.close(reader)


def test_pipes_by_number() -> None:
    reader, writer = os.pipe()
    thread = written(writer, IMAGE + IMAGE)
    for _ in range(2):  # of a pipe no byte is taken that is not of the image
        assert restored(f"/dev/fd/{reader}") == 5
    thread.join()
    os.close(reader)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_non_blocking_sources_are_waited_for(kind: str) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as source:
        waits = threading.Event()
        numbers: list[int] = []

        def read() -> None:
            waits.set()
            numbers.append(restored(source))

        thread = threading.Thread(target=read)
        thread.start()
        waits.wait()
        written(writer, IMAGE).join()
        thread.join()
    assert numbers == [5]


def test_a_source_that_cannot_be_waited_for() -> None:
    class Sleepy:
        def read(self, size: int) -> None:
            return None

    with pytest.raises(BlockingIOError) as caught:
        MemoryFile.restore(Sleepy())
    assert caught.value.filename == "<Sleepy>"


def test_standard_input() -> None:
    code = "import pgalloc; print(pgalloc.verify_image('/dev/stdin').restore_id)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=IMAGE, capture_output=True, check=True
    )
    assert done.stdout == b"5\n"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    with open(tmp_path / "image", encoding="latin-1") as text:
        for source in (text, io.StringIO("text")):
            for call in (restored, *LOOKS):
                with pytest.raises(TypeError, match="binary"):
                    call(source)
    for buffering in (0, -1):
        with open(tmp_path / "target", "wb", buffering=buffering) as target:
            for call in (restored, *LOOKS):
                with pytest.raises(io.UnsupportedOperation) as caught:
                    call(target)
                assert caught.value.filename == str(tmp_path / "target")


# --- errors --------------------------------------------------------------------------------------


class PathLike:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("restore", MemoryFile.restore),
    ("restore", lambda source: MemoryFile.restore(source, background=True)),
    ("inspect_image", pgalloc.inspect_image),
    ("verify_image", pgalloc.verify_image),
]


@pytest.mark.parametrize(("operation", "call"), CALLS)
def test_errors_name_the_path(tmp_path: Path, operation: str, call: Callable[[Any], Any]) -> None:
    missing = tmp_path / "missing"
    for form in (missing, str(missing), os.fsencode(missing), PathLike(str(missing))):
        with pytest.raises(FileNotFoundError) as caught:
            call(form)
        assert caught.value.filename == os.fspath(form)
        assert str(caught.value).startswith(f"[Errno 2] {operation}: ")
    (tmp_path / "no image").write_bytes(b"text" * 9999)
    for form in (tmp_path / "no image", os.fsencode(tmp_path / "no image")):
        with pytest.raises(SnapshotCorruptError, match=r"no image'.*magic"):
            call(form)
    (tmp_path / "image").write_bytes(IMAGE)
    with FaultPlan("pread", errno.EIO), pytest.raises(OSError) as failed:
        call(tmp_path / "image")
    assert (failed.value.errno, failed.value.filename) == (errno.EIO, str(tmp_path / "image"))
    with (
        open(tmp_path / "image", "rb") as file,
        FaultPlan("pread", errno.EIO),
        pytest.raises(OSError) as failed,
    ):
        call(file)
    assert failed.value.filename == str(tmp_path / "image")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    for call in (MemoryFile.restore, *LOOKS):
        with pytest.raises(IsADirectoryError) as caught:
            call(tmp_path)
        assert caught.value.filename == str(tmp_path)


def test_pages_that_cannot_be_loaded_name_the_image(tmp_path: Path) -> None:
    """Whenever they are touched."""
    (tmp_path / "image").write_bytes(damaged(IMAGE, 3 * PAGE))
    with MemoryFile.restore(tmp_path / "image", background=True) as mf:
        mf.wait_loaded()
        for _ in range(2):
            with pytest.raises(SnapshotCorruptError, match=r"/image': .*checksum"):
                mf.map_range(FileRange(0, PAGE))
        with pytest.raises(SnapshotCorruptError, match=r"/image': .*checksum"):
            Allocation.adopt(mf, FileRange(0, PAGE)).view()
        with pytest.raises(SnapshotCorruptError, match=r"/image': .*checksum") as caught:
            mf.save(tmp_path / "other")
        assert "other" not in str(caught.value)


def test_errors_of_the_backing_are_not_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    backing = tmp_path / "missing" / "backing"
    with pytest.raises(FileNotFoundError) as caught:
        MemoryFile.restore(tmp_path / "image", backing=backing)
    assert caught.value.filename == str(backing)


def test_what_a_hook_raises_is_its_own(tmp_path: Path) -> None:
    def fail(mf: MemoryFile, data: bytes) -> None:
        raise FileNotFoundError(errno.ENOENT, "mine")

    with MemoryFile() as mf:
        mf.save_hook("hook", save=bytes)
        mf.save(tmp_path / "image")
    with pytest.raises(FileNotFoundError, match="mine") as caught:
        MemoryFile.restore(tmp_path / "image", hooks={"hook": fail})
    assert caught.value.filename is None


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_the_constructor_names_its_path(tmp_path: Path, form: Callable[[str], Any]) -> None:
    backing = form(str(tmp_path / "missing" / "pages"))
    with pytest.raises(FileNotFoundError) as caught:
        MemoryFile(backing)
    assert caught.value.filename == os.fspath(backing)
    assert str(caught.value).startswith("[Errno 2] MemoryFile: ")
    with pytest.raises(IsADirectoryError) as folder:
        MemoryFile(form(str(tmp_path)))
    assert folder.value.filename == os.fspath(form(str(tmp_path)))


def test_the_constructor_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "pages").touch()
    with open(tmp_path / "pages", "rb") as file, pytest.raises(OSError) as caught:
        MemoryFile(file)
    assert caught.value.filename == str(tmp_path / "pages")
    with FaultPlan("mmap", errno.ENOMEM), pytest.raises(OSError) as failed:
        MemoryFile()
    assert failed.value.filename is None
    assert "MemoryFile: " in str(failed.value)
    assert "None" not in str(failed.value)


def test_the_same_restored_and_saved(tmp_path: Path) -> None:
    """A large one, through everything: a FIFO, a stream, a file among others, in the background."""
    mf, _ = random_file(70)
    with mf, open(tmp_path / "file", "w+b") as file:
        file.write(b"x" * 5)
        mf.save(file, compression="zstd")
        mf.save(file)
        file.seek(5)
        for background in (True, False):
            with MemoryFile.restore(file, background=background) as again:
                assert contents(again) == contents(mf)
