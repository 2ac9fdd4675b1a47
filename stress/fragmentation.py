"""Allocations of 4 KiB to 64 MiB, small and huge, freed in random parts. See README.md.

    python stress/fragmentation.py --seconds 600
    python stress/huge_pages.py -- python stress/fragmentation.py --seconds 600

At each stop the account must be what the kernel says, to the byte, and that what is used, to the
page; every page must have the stamp of its owner. In between, what is committed may be no more than
what is used and what waits to be given back; and no more than 512 MiB above what was used at the
most: what is freed while a thread that shares its processor punches 128 MiB. At every tenth stop it
waits for nothing: what waits to be recycled must have gone by itself. At the end nothing may be
left. With ``--plant`` a part that was freed is written to, and must be found.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass

from pgalloc import Allocation, AllocationMode, FileRange, MemoryFile
from pgalloc.testing import verify

PAGE = 4096
SIZE_MAX = 64 << 20
LIVE_MAX = 512 << 20
STOP_EVERY = 500
LOOK_EVERY = 10
SILENT_EVERY = 10
SILENCE_S = 1.0
ABOVE_MAX = 512 << 20
MODES = tuple(AllocationMode)


class WrongError(Exception):
    """A promise was broken."""


@dataclass
class Piece:
    """A handle, and what its pages begin with."""

    pages: Allocation
    stamp: int

    def check(self) -> None:
        """Raises WrongError unless each page has the stamp."""
        with self.pages.view(readonly=True) as view, view.cast("Q") as words:
            if any(word != self.stamp for word in words[:: PAGE // 8]):
                raise WrongError(f"{self.pages.range} holds what is another's")


class Torture:
    """One thread that allocates and frees."""

    def __init__(self, file: MemoryFile, seed: int) -> None:
        self._file = file
        self._random = random.Random(seed)
        self._live: list[Piece] = []
        self._bytes = 0
        self.steps = self.stops = self.most = self.most_above = 0
        self.freed: FileRange | None = None

    def run(self, seconds: float) -> None:
        """Works until the time is up, then lets go of everything."""
        end = time.monotonic() + seconds  # time: how long the caller wants it to go on
        while time.monotonic() < end:  # time: the same
            self.steps += 1
            if self._bytes > LIVE_MAX or (self._live and self._random.random() < 0.5):
                self._free()
            else:
                self._allocate()
            if self.steps % STOP_EVERY == 0:
                self.stop()
            elif self.steps % LOOK_EVERY == 0:
                self.look()
        while self._live:
            self._live.pop().pages.release()
        self._bytes = 0
        self.stop()

    def _allocate(self) -> None:
        exponent = self._random.uniform(math.log2(PAGE), math.log2(SIZE_MAX))
        length = int(2**exponent) // PAGE * PAGE
        mode = self._random.choice(MODES)
        pages = self._file.allocate(length, mode=mode, huge=self._random.random() < 0.7)
        stamp = self._random.getrandbits(63) | 1
        with pages.view() as view, view.cast("Q") as words:
            for at in range(0, len(words), PAGE // 8):
                if words[at]:
                    raise WrongError(f"a new page at {pages.range.start + at * 8:#x} is not zero")
                words[at] = stamp
        self._live.append(Piece(pages, stamp))
        self._bytes += length
        self.most = max(self.most, self._bytes)

    def _free(self) -> None:
        piece = self._live.pop(self._random.randrange(len(self._live)))
        piece.check()
        length = piece.pages.nbytes
        if length > PAGE and self._random.random() < 0.6:
            cut = self._random.randrange(PAGE, length, PAGE)
            kept, gone = self._random.sample([(0, cut), (cut, length)], 2)
            self._live.append(Piece(piece.pages.slice(*kept), piece.stamp))
            start = piece.pages.range.start
            self.freed = FileRange(start + gone[0], start + gone[1])
            self._bytes -= gone[1] - gone[0]
        else:
            self._bytes -= length
        piece.pages.release()

    def look(self) -> None:
        """What is committed is used or waits, and not much more than was used at the most."""
        waiting = self._file.stats().waiting_bytes
        committed = self._file.total_usage()
        if committed > self._bytes + waiting:
            raise WrongError(f"{committed} committed, {self._bytes} used, {waiting} wait")
        above = committed - self.most
        self.most_above = max(self.most_above, above)
        if above > ABOVE_MAX:
            raise WrongError(f"{above} bytes more than what was used at the most")

    def stop(self) -> None:
        """Waits until what was freed has gone, and looks at all there is."""
        self.stops += 1
        if self.stops % SILENT_EVERY == 0:
            time.sleep(SILENCE_S)  # time: within it all has gone, says row F6
            if waiting := self._file.stats().waiting_bytes:
                raise WrongError(f"{waiting} bytes wait though nothing was asked for")
        if not self._file.wait_for_reclaim(60):
            raise WrongError("freed pages stay")
        verify(self._file)
        while not self._file.update_usage():
            time.sleep(0.01)  # time: scans are throttled
        account, kernel = sum(self._file.usage().values()), self._file.total_usage()
        if not account == kernel == self._bytes:
            raise WrongError(f"used {self._bytes}, the account {account}, the kernel {kernel}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    with MemoryFile() as file:
        torture = Torture(file, options.seed)
        try:
            if options.plant:
                plant(file, torture)
            else:
                torture.run(options.seconds)
        except WrongError as error:
            print(f"FAILED: {error}")
            return 1
        stats = file.stats()
    print(
        json.dumps(
            {
                "steps": torture.steps,
                "stops": torture.stops,
                "most_mib": torture.most >> 20,
                "most_mib_above": torture.most_above >> 20,
                "recycled_mib": stats.recycled_bytes >> 20,
                "huge_allocations": stats.huge_allocations,
                "punches": stats.punches,
            }
        )
    )
    return 0


def plant(file: MemoryFile, torture: Torture) -> None:
    """Commits a page of a part that was freed, as the kernel's own thread could."""
    torture.run(1)
    piece = file.allocate(4 << 20, huge=True)
    kept = piece.slice(0, PAGE)
    freed = FileRange(piece.range.start + PAGE, piece.range.start + 2 * PAGE)
    piece.release()
    file.wait_for_reclaim(60)
    with file.map_range(freed) as view:
        view[0] = 1
    torture.stop()
    kept.release()


if __name__ == "__main__":
    sys.exit(main())
