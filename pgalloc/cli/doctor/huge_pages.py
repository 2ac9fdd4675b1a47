"""Whether memfds get huge pages here: what the switches say, and one page that is tried.

The switches are the kernel's (Documentation/admin-guide/mm/transhuge.rst): one for shmem, which
memfds are, and since Linux 6.11 one for each size of pages, which by default inherits it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pgalloc

SWITCHES = Path("/sys/kernel/mm/transparent_hugepage")
_OFFERS = ("always", "within_size", "advise", "force")


class NoHugePagesError(Exception):
    """There are none; ``remedy`` says what would help."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


def try_huge_page() -> str:
    """What the kernel offers, as the switch says it, once a huge page was had.

    Raises NoHugePagesError.
    """
    of_all = SWITCHES / "shmem_enabled"
    own = SWITCHES / f"hugepages-{pgalloc.HUGE_PAGE_SIZE >> 10}kB" / "shmem_enabled"
    choice = _choice(of_all)
    if not choice:
        raise NoHugePagesError("the kernel has none for shmem", "CONFIG_SHMEM and THP would help")
    own_choice = _choice(own) or "inherit"
    if own_choice not in ("inherit", *_OFFERS):
        raise NoHugePagesError(f"{own_choice} in {own}", _command("inherit", own))
    offered = choice if own_choice == "inherit" else own_choice
    if offered not in _OFFERS:
        raise NoHugePagesError(f"{choice} in {of_all}", _command("advise", of_all))
    try:
        had = _is_had()
    except (pgalloc.Error, MemoryError, OSError) as error:
        raise NoHugePagesError(f"{offered}, but trying it failed: {error}") from error
    if not had:
        raise NoHugePagesError(
            f"{offered}, but none was to be had",
            "memory is fragmented, or a limit near: small pages are used meanwhile",
        )
    return offered


def _choice(switch: Path) -> str:
    try:
        return switch.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def _command(choice: str, switch: Path) -> str:
    return (
        f"as root: echo {choice} > {switch} (containers see their host's switch, and Docker and "
        "Kubernetes let only privileged ones write it)"
    )


def _is_had() -> bool:
    """Whether a huge page is mapped where one was asked for and touched."""
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
