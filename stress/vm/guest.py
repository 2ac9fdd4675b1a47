"""Process 1 in the machine: mounts, makes a cgroup, runs one command in it, reports, switches off.

Runs without anything of this folder beside it. The report goes to the second serial port, a JSON
object in each line: ``{"up": seconds}``, then ``{"output": text}`` while the command runs, then
``{"result": ...}``, or ``{"failure": text}`` if this program itself failed.
"""

import ctypes
import fcntl
import json
import os
import subprocess
import termios
import time
import traceback
import tty
from collections.abc import Callable
from typing import Any

CGROUPS = "/sys/fs/cgroup"
GROUP = f"{CGROUPS}/job"
MOUNTS = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("cgroup2", CGROUPS),
]
RB_AUTOBOOT = 0x01234567
_FINIT_MODULE = 313  # x86-64
_LOOP_SET_FD = 0x4C00

# Enters the group and becomes the command: all the command's memory is charged to the group.
ENTER = "import os, sys; open(sys.argv[1], 'w').write('0'); os.execvp(sys.argv[2], sys.argv[2:])"


def mount_all(libc: ctypes.CDLL) -> None:
    for kind, where in MOUNTS:
        os.makedirs(where, exist_ok=True)
        failed = libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)
        # A kernel may have mounted devtmpfs by itself.
        if failed and kind != "devtmpfs":
            raise OSError(ctypes.get_errno(), f"mount {kind}")


def make_disk(libc: ctypes.CDLL, mib: int) -> None:
    """A loop device of zeros. It stays open: with its last user the page cache of it would go."""
    with open("/loop.ko", "rb") as module:
        if libc.syscall(_FINIT_MODULE, module.fileno(), b"", 0):
            raise OSError(ctypes.get_errno(), "finit_module")
    device = os.open("/dev/loop0", os.O_RDWR)
    with open("/disk", "w+b") as file:
        file.truncate(mib << 20)
        fcntl.ioctl(device, _LOOP_SET_FD, file.fileno())


def put(file: str, text: str) -> None:
    with open(file, "w") as out:
        out.write(text)


def make_group(limits: dict[str, str]) -> None:
    put(f"{CGROUPS}/cgroup.subtree_control", "+memory")
    os.mkdir(GROUP)
    for name, value in limits.items():
        put(f"{GROUP}/{name}", value)


def events() -> dict[str, int]:
    """The kernel's counters of the group: "oom", "oom_kill" and others."""
    with open(f"{GROUP}/memory.events") as file:
        return {name: int(count) for name, count in (line.split() for line in file)}


def number(name: str) -> int:
    with open(f"{GROUP}/{name}") as file:
        return int(file.read())


def run(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> int:
    """Runs the command; returns its exit status as subprocess counts: -9 after a SIGKILL."""
    prefix = [job["python"], "-c", ENTER, f"{GROUP}/cgroup.procs"] if job["limits"] else []
    process = subprocess.Popen(
        prefix + job["command"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=job["directory"],
        env=job["environment"],
    )
    assert process.stdout is not None
    for line in process.stdout:
        say({"output": line.decode("utf-8", "backslashreplace")})
    return process.wait()


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mount_all(libc)
    report = os.open("/dev/ttyS1", os.O_WRONLY | os.O_NOCTTY)
    tty.setraw(report)

    def say(what: dict[str, Any]) -> None:
        data = json.dumps(what).encode() + b"\n"
        while data:
            data = data[os.write(report, data) :]

    try:
        with open("/job.json") as file:
            job = json.load(file)
        # Or what the command cannot see would depend on how long this machine took to boot.
        os.makedirs(job["directory"], exist_ok=True)
        if job["disk_mib"]:
            make_disk(libc, job["disk_mib"])
        make_group(job["limits"])
        begin = time.monotonic()
        say({"up": begin})
        status = run(job, say)
        seconds = time.monotonic() - begin
        result = {"status": status, "seconds": seconds, "booted_in": begin, "events": events()}
        result |= {"peak": number("memory.peak"), "kernel": os.uname().release}
        say({"result": result})
    except BaseException:
        say({"failure": traceback.format_exc()})
    termios.tcdrain(report)
    # The emulator runs with -no-reboot: this ends it.
    libc.reboot(RB_AUTOBOOT)


main()
