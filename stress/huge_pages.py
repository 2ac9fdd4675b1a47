"""Runs a command with huge pages for memfds, and puts the machine's switch back. See README.md.

    python stress/huge_pages.py -- python -m pytest tests/huge

The switch is the machine's, so one command at a time has it, and a process of its own puts it back
when this one has ended, however it ends. Exit status: the command's. Where the switch cannot be
written this says so, runs nothing, and the status is 0.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
LOCK = Path(tempfile.gettempdir()) / "pgalloc-huge-pages.lock"
WANTED = "advise"


def choice(text: str) -> str:
    """What is in brackets, in "always advise [never]"."""
    return text.partition("[")[2].partition("]")[0]


def put_back_at_the_end(before: str, lock: IO[str]) -> int:
    """A process that waits for the end of this one. Returns what that end closes."""
    waits, stays = os.pipe()  # not inherited by programs
    if os.fork():
        os.close(waits)
        return stays
    os.close(stays)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(waits, 1)
    SWITCH.write_text(before)
    lock.close()
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", nargs="+", help="behind --")
    options = parser.parse_args()
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            before = choice(SWITCH.read_text())
            SWITCH.write_text(before)
        except OSError as error:
            print(f"huge pages: NOT TRIED, {SWITCH} cannot be written: {error}", flush=True)
            return 0
        stays = put_back_at_the_end(before, lock)
        try:
            SWITCH.write_text(WANTED)
            return subprocess.run(options.command, check=False).returncode
        finally:
            SWITCH.write_text(before)
            os.close(stays)


if __name__ == "__main__":
    sys.exit(main())
