"""What the running kernel lets this process do, found out by doing it once on a page.

A version number says little: distributions backport, containers filter system calls. Each probe
cleans up after itself and none raises. Numbers from asm-generic/unistd.h and asm/unistd_64.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

from pgalloc.cli.doctor.huge_pages import NoHugePagesError, try_huge_page

_MADV_POPULATE_WRITE = 23
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_UFFD_USER_MODE_ONLY = 1
_SYS_CACHESTAT = 451  # the same everywhere since it is newer than the common numbering
_SYS_USERFAULTFD = {"x86_64": 323, "i686": 374, "armv7l": 388, "ppc64le": 364, "s390x": 355}
_SYS_USERFAULTFD_GENERIC = 282


@dataclass(frozen=True, slots=True)
class Feature:
    """One probe's answer; ``detail`` is the error, or how it is configured.

    ``remedy`` is what would help, if that is known; ``advice`` is more about it, in lines.
    """

    name: str
    available: bool
    detail: str
    remedy: str = ""
    advice: tuple[str, ...] = ()


def probe_kernel_features() -> tuple[Feature, ...]:
    """Tries memfd, hole punching, MADV_POPULATE_WRITE, cachestat, userfaultfd, shmem huge pages."""
    probes: dict[str, Callable[[], str]] = {
        "memfd": _memfd,
        "punch_hole": _punch_hole,
        "populate_write": _populate_write,
        "cachestat": _cachestat,
        "userfaultfd": _userfaultfd,
        "shmem_huge_pages": try_huge_page,
    }
    return tuple(_try(name, probe) for name, probe in probes.items())


def _try(name: str, probe: Callable[[], str]) -> Feature:
    try:
        return Feature(name, True, probe())
    except NoHugePagesError as error:
        return Feature(name, False, str(error), error.remedy, error.advice)
    except OSError as error:
        words = error.strerror or str(error)
        code = errno.errorcode.get(error.errno or 0)
        return Feature(name, False, f"{words} ({code})" if code else words)


def _memfd() -> str:
    os.close(os.memfd_create("pgalloc-probe"))
    return ""


def _punch_hole() -> str:
    fd = os.memfd_create("pgalloc-probe")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        size = ctypes.c_int64(mmap.PAGESIZE)
        _checked(_libc().fallocate64(fd, mode, ctypes.c_int64(0), size))
    finally:
        os.close(fd)
    return ""


def _populate_write() -> str:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page.madvise(_MADV_POPULATE_WRITE)
    return ""


def _cachestat() -> str:
    class Range(ctypes.Structure):
        _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]

    counters = (ctypes.c_uint64 * 5)()
    fd = os.memfd_create("pgalloc-probe")
    try:
        whole = Range(0, mmap.PAGESIZE)
        _syscall(_SYS_CACHESTAT, fd, ctypes.byref(whole), ctypes.byref(counters), 0)
    finally:
        os.close(fd)
    return ""


def _userfaultfd() -> str:
    number = _SYS_USERFAULTFD.get(platform.machine(), _SYS_USERFAULTFD_GENERIC)
    try:
        os.close(_syscall(number, os.O_CLOEXEC))
    except PermissionError:
        os.close(_syscall(number, os.O_CLOEXEC | _UFFD_USER_MODE_ONLY))
        return "faults from user mode only"
    return ""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    return _checked(libc.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
