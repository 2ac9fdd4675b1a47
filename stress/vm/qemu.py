"""The emulator; installed with apt where it is missing and the caller is root."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

_PACKAGES = {"x86_64": "qemu-system-x86"}


def find_qemu() -> str:
    """The path of the emulator of this machine's architecture."""
    architecture = platform.machine()
    program = f"qemu-system-{architecture}"
    found = shutil.which(program)
    if found is None:
        package = _PACKAGES[architecture]
        if os.geteuid() != 0:
            raise FileNotFoundError(f"{program} is missing: apt-get install {package}")
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", package],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(program)
    return found
