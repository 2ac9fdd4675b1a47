"""How much memory a process has, by the kernel's count.

Sources: proc(5); Documentation/filesystems/proc.rst, "smaps_rollup".
"""

from __future__ import annotations

from pathlib import Path


def proportional_bytes(pid: int) -> int:
    """Memory of a process; a page that N processes map counts one Nth in each.

    Pages of files on disk are left out: they are the code of the interpreter, whose share depends
    on what else runs on the machine. Raises OSError if the process may not be looked at.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    if "Pss_Anon" not in kib:  # Linux before 5.4 does not tell them apart
        return kib["Pss"] << 10
    return (kib["Pss_Anon"] + kib["Pss_Shmem"]) << 10
