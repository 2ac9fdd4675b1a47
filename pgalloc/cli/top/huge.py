"""How much of its files a process has mapped by huge pages: PAGEMAP_SCAN on its page tables.

Linux 6.7 has it. smaps, which older kernels have, too, looks at everything else a process has.
"""

from __future__ import annotations

import array
import fcntl
import struct
from pathlib import Path

# struct pm_scan_arg and struct page_region of linux/fs.h, and _IOWR('f', 16, struct pm_scan_arg).
_REQUEST = struct.Struct("12Q")
_PAGEMAP_SCAN = 3 << 30 | _REQUEST.size << 16 | ord("f") << 8 | 16
_PRESENT_AND_HUGE = 1 << 3 | 1 << 6
_REGIONS = 256

_Range = tuple[int, int]


def huge_bytes_by_inode(folder: Path, name: str) -> dict[int, int] | None:
    """Bytes in huge pages, by inode of the files of that name that are mapped.

    ``folder`` is the process's in procfs. None if it cannot be told: an older kernel, no
    permission, or a process that has just ended.
    """
    try:
        ranges = _mappings(folder, name)
        if not ranges:
            return {}
        with open(folder / "pagemap", "rb", buffering=0) as pagemap:
            return {
                inode: sum(_huge_bytes(pagemap.fileno(), part) for part in parts)
                for inode, parts in ranges.items()
            }
    except OSError:
        return None


def _mappings(folder: Path, name: str) -> dict[int, list[_Range]]:
    """The addresses of each inode; those that touch are one."""
    found: dict[int, list[_Range]] = {}
    for line in (folder / "maps").read_text(errors="surrogateescape").splitlines():
        if not line.endswith(name):
            continue
        addresses, _, _, _, inode, _ = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in addresses.split("-"))
        parts = found.setdefault(int(inode), [])
        if parts and parts[-1][1] == start:
            start = parts.pop()[0]
        parts.append((start, end))
    return found


def _huge_bytes(pagemap: int, addresses: _Range) -> int:
    regions = array.array("Q", bytes(24 * _REGIONS))
    vector = regions.buffer_info()[0]
    start, end = addresses
    found = 0
    while start < end:
        request = bytearray(
            _REQUEST.pack(
                _REQUEST.size,
                0,
                start,
                end,
                0,
                vector,
                _REGIONS,
                0,
                0,
                _PRESENT_AND_HUGE,
                0,
                _PRESENT_AND_HUGE,
            )
        )
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, request)
        walked = _REQUEST.unpack(request)[4]
        for number in range(count):
            # A scan that goes on may report what it has reported again.
            found += regions[3 * number + 1] - max(start, regions[3 * number])
        if walked <= start:
            break
        start = walked
    return found
