"""systemd's memory pressure protocol: the service manager says where to listen.

``MEMORY_PRESSURE_WATCH`` is the absolute path of a pressure file of the kernel, of a FIFO or of a
stream socket; ``MEMORY_PRESSURE_WRITE`` is what to write there once it is open, in base64. The
path "/dev/null" asks not to watch at all. A child inherits the variables, so a path may belong to
another service and be closed to this process.

Facts from: systemd's docs/MEMORY_PRESSURE.md, sd_event_add_memory_pressure(3).
"""

from __future__ import annotations

import base64
import binascii
import errno
import operator
import os
import select
import stat
from collections.abc import Mapping
from pathlib import Path

from pgalloc.pressure.descriptors import open_into
from pgalloc.pressure.psi import StallTotal
from pgalloc.pressure.signals import PressureSource

WATCH, WRITE = "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"
_OFF = "/dev/null"


def is_set(environ: Mapping[str, str]) -> bool:
    """Whether systemd says anything, be it not to watch."""
    return bool(environ.get(WATCH))


def is_off(environ: Mapping[str, str]) -> bool:
    """Whether systemd asks not to watch for pressure."""
    return environ.get(WATCH) == _OFF


class SystemdPressure(PressureSource):
    """What the two variables describe. Its signals are of level low, as systemd sets them up."""

    kind = "systemd"

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises OSError: no such path, no permission, nothing that can be watched, bad base64."""
        path = environ.get(WATCH, "")
        self.name = f"systemd {path}"
        if not os.path.isabs(path) or path == _OFF:
            raise OSError(errno.EINVAL, f"{WATCH} is no absolute path to watch", path)
        try:
            request = base64.b64decode(environ.get(WRITE, ""), validate=True)
        except (binascii.Error, ValueError):
            raise OSError(errno.EINVAL, f"{WRITE} is not base64", path) from None
        self._total: StallTotal | None = None
        _open_into(self, path, bool(request))
        try:
            if stat.S_ISREG(os.fstat(self.fd).st_mode):
                self.poll_mask = select.POLLPRI
                self._total = _total_of(Path(path), request)
            os.set_blocking(self.fd, False)
            if request:
                os.write(self.fd, request)
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """Reads away what a FIFO or socket sent: it means nothing but that it came."""
        if self.poll_mask == select.POLLPRI:
            if revents & (select.POLLERR | select.POLLNVAL):
                raise OSError(f"{self.name}: the trigger is gone")
            return bool(revents & select.POLLPRI) and (self._total is None or self._total.rose())
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            raise OSError(f"{self.name}: closed by the other side")
        return True


def _open_into(source: SystemdPressure, path: str, writes: bool) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISSOCK(mode):
        import socket  # hardly ever needed, and slow to import

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(1.0)  # a full backlog must not hold up the program
            connection.connect(path)
            open_into(source, "fd", operator.methodcaller("detach"), connection)
    elif stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        # A FIFO also for writing, or it would end with the first writer that closes it.
        access = os.O_RDWR if writes or stat.S_ISFIFO(mode) else os.O_RDONLY
        open_into(source, "fd", os.open, path, access | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        raise OSError(errno.EINVAL, f"{WATCH} is no file, FIFO or socket", path)


def _total_of(file: Path, request: bytes) -> StallTotal | None:
    """The counter behind a request such as "some 200000 2000000"; None for any other."""
    words = request.rstrip(b"\0\n").split()
    if len(words) != 3 or words[0] not in (b"some", b"full"):
        return None
    if not all(len(word) < 19 and word.isdigit() for word in words[1:]):
        return None
    return StallTotal(file, words[0].decode(), int(words[1]))
