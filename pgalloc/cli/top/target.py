"""Which process ``pgalloc top`` looks at: by its number, or by a Unix socket it listens on."""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

from pgalloc.cli.top.model import LookError
from pgalloc.cli.units import format_path

# struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("3i")
_TIMEOUT_S = 5.0


def pid_of(target: str) -> int:
    """The process that ``target`` names. Raises LookError with the reason if there is none."""
    if target.isdecimal():
        return int(target)
    if not Path(target).is_socket():
        raise LookError(f"{format_path(target)} is neither a process id nor a socket")
    # Nothing is sent, so any protocol will do; only the kind of socket must match.
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        try:
            return _listener(target, kind)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise LookError(f"{format_path(target)}: {_reason(error)}") from error
    raise LookError(f"{format_path(target)}: not a kind of socket that has connections")


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return error.strerror or str(error)


def _listener(path: str, kind: socket.SocketKind) -> int:
    """The process that called listen(2), as the kernel noted it then."""
    with socket.socket(socket.AF_UNIX, kind) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(credentials)[0]
    if pid == 0:
        raise LookError(f"{format_path(path)}: the server cannot be seen from this PID namespace")
    return pid
