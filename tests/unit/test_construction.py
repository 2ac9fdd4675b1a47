"""Section A: construction, options, labels."""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually

import pgalloc
from pgalloc import DelayedEviction, Direction, MemoryFile, OptionError, RangeError, testing
from pgalloc.testing import FaultPlan

PAGE = pgalloc.PAGE_SIZE


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a1_adopted_descriptor_is_owned_on_success(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    mf = MemoryFile(fd)
    assert mf.fileno() == fd
    mf.close()
    assert not _is_open(fd)


@pytest.mark.parametrize("call", ["fstat", "fstatfs", "ftruncate", "mmap"])
def test_a1_adopted_descriptor_stays_the_callers_on_failure(tmp_path: Path, call: str) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        with FaultPlan(call, errno.ENOMEM, times=100), pytest.raises(OSError, match=call):
            MemoryFile(fd)
        assert _is_open(fd)
    finally:
        os.close(fd)


def test_a1_file_object_is_closed_with_the_memory_file(tmp_path: Path) -> None:
    file = open(tmp_path / "f", "w+b")  # noqa: SIM115
    mf = MemoryFile(file)
    assert mf.file is file
    mf.close()
    assert file.closed


def test_a1_file_object_stays_open_on_failure(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w+b") as file:
        with FaultPlan("ftruncate", errno.EIO), pytest.raises(OSError, match="ftruncate"):
            MemoryFile(file)
        assert not file.closed
        assert _is_open(file.fileno())


def test_a1_a4_failing_pressure_leaves_nothing_and_the_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgalloc.pressure import NoPressureSourceError, discovery

    monkeypatch.setattr(discovery, "candidates", lambda **kwargs: iter(()))
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(NoPressureSourceError, match="nothing here can signal") as caught:
            MemoryFile(fd, use_host_memcg_pressure=True)
        assert caught.value.errno == errno.ENOENT
        assert _is_open(fd)
    finally:
        os.close(fd)


def test_a1_descriptors_that_cannot_back_a_file() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises((OSError, OptionError)):
            MemoryFile(read)
        with pytest.raises(OSError, match="Bad file descriptor"):
            MemoryFile(999_999)
    finally:
        os.close(read)
        os.close(write)


def test_new_disk_file_is_removed_when_construction_fails(tmp_path: Path) -> None:
    with FaultPlan("ftruncate", errno.EIO), pytest.raises(OSError, match="ftruncate"):
        MemoryFile(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_bytes(b"x")
    with FaultPlan("ftruncate", errno.EIO), pytest.raises(OSError, match="ftruncate"):
        MemoryFile(tmp_path / "old")
    assert (tmp_path / "old").exists()


def test_a2_default_means_enabled_and_only_enabled_uses_pressure() -> None:
    with MemoryFile() as mf:
        assert mf._delayed_eviction == DelayedEviction.ENABLED
        assert not mf.should_cache_evictable
    for policy in (DelayedEviction.DISABLED, DelayedEviction.MANUAL):
        with MemoryFile(delayed_eviction=policy, use_host_memcg_pressure=True) as mf:
            assert not mf._uses_memcg_pressure
            assert mf.should_cache_evictable == (policy is DelayedEviction.MANUAL)


@pytest.mark.parametrize("value", [4, -1, 99, "ENABLED", None, 1.5, True])
def test_a2_unknown_policy_leaves_the_file_alone(tmp_path: Path, value: object) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"precious")
    with pytest.raises(OptionError):
        MemoryFile(path, delayed_eviction=value)  # type: ignore[arg-type]
    assert path.read_bytes() == b"precious"


def test_a3_previous_content_is_discarded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    with MemoryFile(path) as mf:
        assert mf.total_size == 0
        assert path.stat().st_size == 0
        assert mf.segments() == []
        with mf.allocate(PAGE) as a:
            assert bytes(a) == bytes(PAGE)


def test_a5_page_zero_is_mapped_executable_for_a_moment() -> None:
    with FaultPlan("mmap") as counted, MemoryFile():
        assert counted.calls == 2  # the reservation, and page 0
    with FaultPlan("mmap") as counted, MemoryFile(disable_ima_workaround=True):
        assert counted.calls == 1
    with MemoryFile():
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert all("x" not in m.split()[1] for m in maps if "memfd:pgalloc" in m)


def test_a5_failure_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "pgalloc"),
        FaultPlan("mmap", errno.EACCES, first=2, times=1),
        MemoryFile() as mf,
    ):
        assert mf.total_size == 0
    assert "executable" in caplog.text


def test_a5_one_reclaimer_thread_per_file() -> None:
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = threads()
    with MemoryFile(), MemoryFile():
        made = threads() - before
        assert len(made) == 2
    # The kernel lists a thread for a moment after it was joined.
    eventually(lambda: not made & threads(), "their end")


def test_a6_a7_labels() -> None:
    with MemoryFile(disk_backed=True, restore_id="main") as mf:
        assert mf.is_disk_backed
        assert mf.restore_id == "main"
        for name in ("is_disk_backed", "restore_id", "is_savable"):
            with pytest.raises(AttributeError):
                setattr(mf, name, "other")
        assert not mf.is_savable
        mf.mark_savable()
        mf.mark_savable()
        assert mf.is_savable


def test_a10_file_descriptor_and_dump(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(2 * PAGE)
    assert mf.fileno() >= 0
    assert os.fstat(mf.fileno()).st_size == mf.total_size
    mf.map_range(range_)[:3] = b"abc"
    file = mf.file
    assert isinstance(file, io.FileIO)
    assert os.pread(file.fileno(), 3, range_.start) == b"abc"
    assert "refs=1" in str(mf)
    assert "ANONYMOUS" in str(mf)
    assert str(Direction.BOTTOM_UP) == "up"
    assert f"{Direction.TOP_DOWN}" == "down"
    mf.dec_ref(range_)


@pytest.mark.parametrize("backing", [True, 1.5, b"\0", "a\0b", -1, 2**31, object(), []])
def test_bad_backing(backing: object) -> None:
    with pytest.raises((TypeError, OptionError)):
        MemoryFile(backing)


@pytest.mark.parametrize("name", ["capacity", "max_allocatable_bytes"])
@pytest.mark.parametrize("value", [0, -1, 2**63, 2**64, True, 1.5, "1G"])
def test_bad_sizes(name: str, value: object) -> None:
    with pytest.raises((TypeError, RangeError)):
        MemoryFile(**{name: value})  # type: ignore[arg-type]


def test_capacity_is_whole_pages_and_may_be_refused() -> None:
    with pytest.raises(OptionError):
        MemoryFile(capacity=PAGE + 1)
    with pytest.raises(OSError, match="mmap"):
        MemoryFile(capacity=2**62)
    with MemoryFile(capacity=3 * PAGE) as mf:
        assert mf.capacity == 3 * PAGE


def test_default_capacity_is_halved_while_the_kernel_refuses() -> None:
    with MemoryFile() as mf:
        default = mf.capacity
    with FaultPlan("mmap", errno.ENOMEM, times=3), MemoryFile() as mf:
        assert mf.capacity == default // 8


def test_hundreds_of_files_fit_one_process() -> None:
    files = [MemoryFile() for _ in range(300)]
    ranges = [mf.allocate_range(PAGE) for mf in files]
    for mf, range_ in zip(files, ranges, strict=True):
        mf.map_range(range_)[0] = 1
    for mf in files:
        mf.close()


def test_import_needs_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import pgalloc; "
        "roots = {m.split('.')[0] for m in set(sys.modules) - before}; "
        # multiprocessing gives __main__ a second name.
        "extra = roots - set(sys.stdlib_module_names) - {'pgalloc', '__mp_main__'}; "
        "assert not extra, extra"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_import_says_that_linux_is_needed() -> None:
    code = (
        "import sys; sys.platform = 'darwin'\n"
        "try:\n    import pgalloc\n"
        "except ImportError as error:\n    assert 'Linux' in str(error), error\n"
        "else:\n    raise SystemExit('imported')\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_page_size_is_the_kernels() -> None:
    assert os.sysconf("SC_PAGESIZE") == PAGE
    assert ctypes.CDLL(None).getpagesize() == PAGE


def test_subclass_without_init_is_an_error_not_a_crash() -> None:
    class Lazy(MemoryFile):
        def __init__(self) -> None:
            pass

    with pytest.raises((RuntimeError, TypeError)):
        Lazy().allocate_range(PAGE)


def test_verify_names_nothing_on_a_healthy_file(mf: MemoryFile) -> None:
    testing.verify(mf)
