"""Boots the machine, passes on what the command prints, and says how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vm import contents
from vm.kernel import find_kernel, loop_module
from vm.newc import Archive
from vm.qemu import find_qemu

# panic=-1 and -no-reboot: a panic ends the emulator. psi=1: Debian builds it in, switched off.
# Emulated pages are dear: they are not zeroed twice, nor (erms, fsrm) byte by byte.
_KERNEL_OPTIONS = (
    "console=ttyS0 loglevel=4 panic=-1 oops=panic psi=1 mitigations=off init_on_alloc=0"
)
_PROCESSOR = "max,-erms,-fsrm"
_BOOT_S_MAX = 100.0  # ten to thirty as a rule
_BOOTS = 2  # as often as it may be tried


class MachineError(Exception):
    """The machine did not do what it is for; says nothing about the command."""


class NotUpError(MachineError):
    """It never ran the command: an emulated machine hangs in its boot now and then."""


@dataclass(frozen=True, slots=True)
class Result:
    """How the command ended.

    Attributes:
        status: its exit status, negative for a signal.
        seconds: how long it ran, on the machine's clock.
        booted_in: seconds from the kernel's start to the command's.
        events: the counters of the group's ``memory.events``.
        peak: the most bytes that were charged to the group.
        kernel: the release.
    """

    status: int
    seconds: float
    booted_in: float
    peak: int
    kernel: str
    events: dict[str, int] = field(default_factory=dict)

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed because of the group's limit."""
        return self.events["oom_kill"] > 0


@dataclass(frozen=True, slots=True)
class Job:
    """A command and its surroundings; ``limits`` are files of the group and what is written.

    With ``disk_mib`` there is a disk of zeros, /dev/loop0: what is read of it is page cache, which
    files of the machine are not, being in memory.
    """

    command: list[str]
    limits: dict[str, str]
    packages: Iterable[str] = ()
    folders: Iterable[Path] = ()
    memory_mib: int = 2048
    cpus: int = 2
    disk_mib: int = 0
    environment: dict[str, str] = field(default_factory=dict)


def boot(
    job: Job, cache: Path, *, timeout_s: float, output: Callable[[str], object] = sys.stdout.write
) -> Result:
    """Raises MachineError if there is no result, TimeoutError if it took too long."""
    kernel, qemu = find_kernel(cache), find_qemu()
    with tempfile.TemporaryDirectory(prefix="pgalloc-vm-") as folder:
        initramfs, console = Path(folder, "initramfs"), Path(folder, "console")
        _write_initramfs(job, kernel, initramfs)
        command = [qemu, "-accel", "tcg", "-cpu", _PROCESSOR, "-smp", str(job.cpus)]
        command += ["-m", f"{job.memory_mib}M", "-no-reboot", "-nodefaults", "-display", "none"]
        command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", _KERNEL_OPTIONS]
        # The first serial port is the kernel's console, the second the report.
        command += ["-serial", f"file:{console}", "-chardev", "stdio,id=report,signal=off"]
        command += ["-serial", "chardev:report"]
        for attempt in range(_BOOTS):
            try:
                return _attend(command, timeout_s, output)
            except (MachineError, TimeoutError) as error:
                text = console.read_text(errors="backslashreplace") if console.exists() else ""
                error.add_note("the kernel's console:\n" + "\n".join(text.splitlines()[-40:]))
                if not isinstance(error, NotUpError) or attempt == _BOOTS - 1:
                    raise
                print(f"{error}: once more", file=sys.stderr)
        raise AssertionError("unreachable")


def _attend(command: list[str], timeout_s: float, output: Callable[[str], object]) -> Result:
    # The emulator's complaints go to standard error, as they are.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    late = threading.Event()
    is_up = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    def give_up_booting() -> None:
        if not is_up.is_set():
            process.kill()

    timer = threading.Timer(timeout_s, give_up)
    boot_timer = threading.Timer(_BOOT_S_MAX, give_up_booting)
    timer.start()
    boot_timer.start()
    result: Result | None = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "failure" in said:
                raise MachineError(said["failure"])
            if "up" in said:
                is_up.set()
            elif "result" in said:
                result = Result(**said["result"])
            else:
                output(said["output"])
    except json.JSONDecodeError as error:
        if not late.is_set():  # else the line was cut
            raise MachineError(f"not a report: {error.doc!r}") from error
    finally:
        timer.cancel()
        boot_timer.cancel()
        if result is None:
            process.kill()
        process.wait()
        timer.join()
        boot_timer.join()
    if result is None:
        if late.is_set():
            raise TimeoutError(f"no result within {timeout_s:.0f} s")
        if not is_up.is_set():
            raise NotUpError(f"the machine did not come up within {_BOOT_S_MAX:.0f} s")
        raise MachineError("the machine ended without a result")
    return result


def _write_initramfs(job: Job, kernel: Path, file: Path) -> None:
    with file.open("wb") as out:
        archive = Archive(out)
        contents.write(archive, contents.python_files())
        for package in job.packages:
            contents.write(archive, contents.package_files(package))
        for folder in job.folders:
            contents.write(archive, contents.folder_files(folder))
        python = os.path.realpath(sys.executable)
        guest = Path(__file__).with_name("guest.py").read_bytes()
        archive.add_bytes("/init", b"#!%s -I\n%s" % (os.fsencode(python), guest), mode=0o755)
        archive.add_symlink("/usr/bin/python", python)
        for name in ("/proc", "/sys", "/dev", "/tmp", contents.HOME):
            archive.add_directory(name)
        if job.disk_mib:
            archive.add_bytes("/loop.ko", loop_module(kernel).read_bytes())
        archive.add_bytes("/job.json", json.dumps(_plan(job, python)).encode())
        archive.close()


def _plan(job: Job, python: str) -> dict[str, object]:
    environment = {
        "HOME": contents.HOME,
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": contents.SITE,
        # The byte code would be charged to the group, file systems being memory here.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **job.environment,
    }
    return {
        "python": python,
        "command": job.command,
        "limits": job.limits,
        "disk_mib": job.disk_mib,
        "directory": contents.HOME,
        "environment": environment,
    }
