"""What the kernel gives: run by ``stress/huge_pages.py``, which switches huge pages on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgalloc import MemoryFile, testing

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@pytest.fixture(scope="session", autouse=True)
def huge_pages_are_on() -> None:
    if "[advise]" not in SWITCH.read_text():
        pytest.exit(f"{SWITCH} must say advise: python stress/huge_pages.py -- ...", returncode=3)


@pytest.fixture
def mf() -> Iterator[MemoryFile]:
    with MemoryFile() as file:
        yield file
        assert file.wait_for_reclaim(20)
        testing.verify(file)


def mappings() -> Iterator[tuple[int, int, dict[str, str]]]:
    """The mappings of pgalloc's memfds in this process: from, to, what smaps says of them."""
    head = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*$")
    current: tuple[int, int, dict[str, str]] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := head.match(line):
            if current is not None:
                yield current
            start, end = (int(number, 16) for number in found.groups())
            current = (start, end, {}) if "/memfd:pgalloc" in line else None
        elif current is not None:
            name, _, value = line.partition(":")
            current[2][name] = value.strip()
    if current is not None:
        yield current


def huge_bytes() -> int:
    """How much of pgalloc's memory this process has mapped by huge pages."""
    return sum(int(said["ShmemPmdMapped"].split()[0]) << 10 for _, _, said in mappings())


def is_advised(address: int) -> bool:
    """Whether the kernel may back this address with a huge page."""
    (flags,) = (
        said["VmFlags"].split() for start, end, said in mappings() if start <= address < end
    )
    assert ("hg" in flags) != ("nh" in flags)
    return "hg" in flags
