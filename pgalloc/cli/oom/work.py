"""What ``pgalloc demo oom`` does twice: look values up in a cache, read them from disk on a miss.

The values are files. Where the files are fewer than it takes to go far beyond the limit, they are
read several times over, and every reading is a value of its own. Every value, from the cache or
from disk, must have the right digest.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from pgalloc.cli.files import KnownFile, find_files
from pgalloc.cli.units import format_path

# What the two processes remember of the files has to be small beside the limit.
_FILES_MAX = 20_000
_VALUES_MAX = 2_000_000
_REPORT_PERIOD_S = 0.1


class WorkError(Exception):
    """The work cannot be done; the text says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """All ``files``, ``rounds`` times."""

    files: tuple[KnownFile, ...]
    rounds: int

    @property
    def values(self) -> int:
        """How many values there are: each reading of a file is one."""
        return len(self.files) * self.rounds

    @property
    def nbytes(self) -> int:
        """Bytes of all values: what a cache holds in the end if it never discards."""
        return sum(file.size for file in self.files) * self.rounds

    def save(self, file: Path) -> None:
        """Writes it to a file, for the process that does the work."""
        file.write_text(json.dumps([self.rounds, *self.files]))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what save() wrote."""
        saved = json.loads(file.read_text())
        return cls(tuple(KnownFile(*entry) for entry in saved[1:]), saved[0])


def find_work(path: str, *, nbytes: int, size_max: int, without: Collection[str] = ()) -> Work:
    """Values of at least ``nbytes`` together, from files below ``path`` of at most ``size_max``.

    Raises WorkError if there is not enough to make values of, OSError for ``path`` itself.
    """
    found = find_files(path, limit=nbytes, page_size=1, without=without)
    files: list[KnownFile] = []
    for source in found.files:
        if 0 < source.size <= size_max and len(files) < _FILES_MAX:
            try:
                with open(source.path, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError:
                continue  # the demo is about memory: another file does as well
            files.append(KnownFile(source.path, source.size, digest))
    total = sum(file.size for file in files)
    if nbytes * len(files) > total * _VALUES_MAX or not files:
        raise WorkError(f"not enough readable data below {format_path(path)}")
    return Work(tuple(files), -(-nbytes // total))


@dataclass(slots=True)
class Progress:
    """How far the work is; ``done`` only when all of it is, and nothing was wrong.

    Attributes:
        values: how many have been read from disk for the first time.
        nbytes: the bytes of those.
        hits: lookups that found the value in the cache.
        misses: lookups that did not, the first one of each value included.
        discards: values that the cache gave up to stay below the limit.
        wrong: values with a wrong digest.
    """

    values: int = 0
    nbytes: int = 0
    hits: int = 0
    misses: int = 0
    discards: int = 0
    wrong: int = 0
    done: bool = False

    def to_json(self) -> str:
        """One line, for standard output."""
        return json.dumps(asdict(self))


class Values(Protocol):
    """What a worker needs of a cache: a dict has it, and so has pgalloc.Cache."""

    def get(self, key: int, /) -> bytes | memoryview | None:
        """The value; None if there is none, or none any more."""

    def __setitem__(self, key: int, value: bytes, /) -> None: ...


class Worker:
    """Does the work with a cache; ``report`` gets the progress now and then, and at the end."""

    def __init__(
        self,
        work: Work,
        cache: Values,
        discards: Callable[[], int],
        report: Callable[[Progress], object],
    ) -> None:
        self._work = work
        self._cache = cache
        self._discards = discards
        self._report = report
        self._progress = Progress()
        self._reported = time.monotonic()
        self._random = random.Random(0)

    def run(self) -> None:
        """Asks for each value for the first time, and after each for one of those before it."""
        files = len(self._work.files)
        for number in range(self._work.values):
            self._look_up(number)
            self._progress.values += 1
            self._progress.nbytes += self._work.files[number % files].size
            # The first ones are much more popular than the rest, as in most uses of a cache.
            self._look_up(int((number + 1) * self._random.random() ** 8))
            if time.monotonic() > self._reported + _REPORT_PERIOD_S:
                self._send()
        self._progress.done = self._progress.wrong == 0
        self._send()

    def _look_up(self, number: int) -> None:
        file = self._work.files[number % len(self._work.files)]
        value = self._cache.get(number)
        if value is None:
            self._progress.misses += 1
            value = Path(file.path).read_bytes()
            self._cache[number] = value
        else:
            self._progress.hits += 1
        if hashlib.sha256(value).hexdigest() != file.digest:
            self._progress.wrong += 1

    def _send(self) -> None:
        self._progress.discards = self._discards()
        self._report(self._progress)
        self._reported = time.monotonic()


def decode_progress(line: bytes) -> Progress:
    """Reads a line that Progress.to_json() wrote."""
    return Progress(**json.loads(line))
