"""Runs a command under real cgroup v2, in a virtual machine. See README.md beside this file.

    python stress/vm_v2.py -- python -c 'import pgalloc; print(pgalloc.pressure.info())'

The machine has this Python, pgalloc as it is imported here, and this folder under its own name in
the current directory. The exit status is the command's; 137 if a signal killed it, 124 if it took
too long, 125 if the machine failed. With ``--oom`` it is 0 only if the kernel's out-of-memory
killer struck, by the kernel's own count.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vm.machine import Job, MachineError, Result, boot

HERE = Path(__file__).resolve().parent


def default_cache() -> Path:
    """Where the kernel stays between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "pgalloc-vm")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory-max", default="256M", help="the group's limit; none: no group")
    parser.add_argument("--oom", action="store_true", help="succeed if it is OOM-killed, only then")
    parser.add_argument("--package", action="append", default=[], help="one more Python package")
    parser.add_argument("--add", action="append", default=[], type=Path, help="one more folder")
    parser.add_argument("--timeout", type=float, default=300, help="seconds, booting included")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the kernel is")
    parser.add_argument("--memory-mib", type=int, default=2048, help="of the whole machine")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--disk-mib", type=int, default=0, help="make a disk, /dev/loop0")
    parser.epilog = "What follows -- is the command."
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:at], argparse.Namespace(command=sys.argv[at + 1 :]))
    if not options.command:
        parser.error("no command: put it behind --")
    return options


def main() -> int:
    options = arguments()
    limits = {"memory.max": options.memory_max, "memory.swap.max": "0"}
    job = Job(
        options.command,
        {} if options.memory_max == "none" else limits,
        ["pgalloc", *options.package],
        [HERE, *options.add],
        options.memory_mib,
        options.cpus,
        options.disk_mib,
    )
    try:
        result = boot(job, options.cache, timeout_s=options.timeout, output=show)
    except TimeoutError as error:
        print(f"vm: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 124
    except (MachineError, OSError, ImportError) as error:
        print(f"vm: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 125
    print(f"vm: {describe(result)}")
    if options.oom:
        return 0 if result.oom_killed else 1
    return result.status if result.status >= 0 else 128 - result.status


def show(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def describe(result: Result) -> str:
    """In one line."""
    end = f"exit status {result.status}"
    if result.status < 0:
        end = f"killed by signal {-result.status}"
    kills = result.events["oom_kill"]
    return (
        f"Linux {result.kernel}, booted in {result.booted_in:.1f} s: {end} "
        f"after {result.seconds:.1f} s, {kills} OOM kills, peak {result.peak / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
