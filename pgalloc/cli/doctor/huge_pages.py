"""Whether memfds get huge pages here: what the switches say, and one page that is tried.

The switches are the kernel's (Documentation/admin-guide/mm/transhuge.rst): one for shmem, which
memfds are, and since Linux 6.11 one for each size of pages, which by default inherits it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pgalloc
from pgalloc import _core

SWITCHES = Path("/sys/kernel/mm/transparent_hugepage")


class NoHugePagesError(Exception):
    """There are none; ``remedy`` is what would help, ``advice`` what else is worth knowing."""

    def __init__(self, why: str, remedy: str = "", advice: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.remedy = remedy
        self.advice = advice


def try_huge_page() -> str:
    """What the kernel offers, as the switch says it, once a huge page was had.

    Raises NoHugePagesError.
    """
    switch, choice, offered = _core.huge_switch(str(SWITCHES))
    if not choice:
        raise NoHugePagesError("the kernel has none for shmem", "CONFIG_SHMEM and THP would help")
    if not offered:
        raise NoHugePagesError(
            f"{choice} in {switch}", f"as root: echo advise > {switch}", _advice(switch)
        )
    try:
        had = _is_had()
    except (pgalloc.Error, MemoryError, OSError) as error:
        raise NoHugePagesError(f"{choice}, but trying it failed: {error}") from error
    if not had:
        raise NoHugePagesError(
            f"{choice}, but none was to be had",
            "memory is fragmented, or a limit near: small pages are used meanwhile",
        )
    return choice


def _advice(switch: str) -> tuple[str, ...]:
    """How the switch stays on, and who may touch it."""
    if Path(switch).parent == SWITCHES:
        parameter = "transparent_hugepage_shmem=advise"
    else:
        parameter = f"thp_shmem={pgalloc.HUGE_PAGE_SIZE >> 20}M:advise"
    return (
        "As root, until the next boot:",
        f"  echo advise > {switch}",
        "For good, this line in /etc/tmpfiles.d/pgalloc.conf:",
        f"  w {switch} - - - - advise",
        f"or, from Linux 6.13 on, the kernel's boot parameter {parameter}",
        "The switch is the host's. Docker and Kubernetes mount /sys read-only, so set it on the "
        "host or node; only a privileged container can. No option of theirs does it: hugepages-2Mi "
        "of Kubernetes is hugetlb, which is something else, and --shm-size is /dev/shm.",
    )


def _is_had() -> bool:
    """Whether a huge page is mapped where one was asked for and touched.

    Asks smaps, which older kernels have, too; MemoryFile.huge_usage() needs Linux 6.7.
    """
    with (
        pgalloc.MemoryFile() as file,
        file.allocate(pgalloc.HUGE_PAGE_SIZE, huge=True) as pages,
        pages.view() as view,
    ):
        view[0] = 1
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                start, end = (int(number, 16) for number in found.groups())
                inside = start <= pages.address < end
            elif inside and line.startswith("ShmemPmdMapped:"):
                return int(line.split()[1]) > 0
        return False
