"""Debian's cloud kernel: its package is downloaded with apt and unpacked, nothing is installed.

Everything that the machine needs (cgroup v2 with the memory controller, tmpfs, memfd, the serial
ports) is built into that kernel, but for a disk: that is a loop device, a module.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64"}


def find_kernel(cache: Path) -> Path:
    """The kernel in ``cache``, fetched if there is none yet."""
    found = sorted(cache.glob("unpacked/boot/vmlinuz-*"))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(cache)
        found = sorted(cache.glob("unpacked/boot/vmlinuz-*"))
    if not found:
        raise FileNotFoundError(f"no kernel in the packages that apt gave: {cache}")
    return found[-1]


def loop_module(kernel: Path) -> Path:
    """Of a kernel that find_kernel() gave."""
    release = kernel.name.removeprefix("vmlinuz-")
    return kernel.parents[1] / "lib/modules" / release / "kernel/drivers/block/loop.ko"


def _fetch(cache: Path) -> None:
    architecture = _ARCHITECTURES[platform.machine()]
    try:
        package = _download(f"linux-image-cloud-{architecture}", cache)
    except OSError:
        # No lists yet, or what they name has been replaced since.
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update", "-q"], None)
        package = _download(f"linux-image-cloud-{architecture}", cache)
    for file in cache.glob(f"{package}_*.deb"):
        _run(["dpkg-deb", "-x", str(file), str(cache / "unpacked")], cache)


def _download(meta_package: str, cache: Path) -> str:
    """Returns the name of the package that was downloaded."""
    package = _real_package(meta_package)
    # "apt-get download" writes into the current directory.
    _run(["apt-get", "download", "-q", package], cache)
    return package


def _real_package(meta_package: str) -> str:
    """The meta package has no kernel, but depends on the newest package that has one."""
    listed = _run(["apt-cache", "depends", "--important", meta_package], None)
    for line in listed.splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation == "Depends" and name.startswith("linux-image-"):
            return name
    raise FileNotFoundError(f"apt knows no {meta_package}: this needs Debian")


def _run(command: list[str], directory: Path | None) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
