"""What ``pgalloc demo workers`` hands to its workers: files, and the digests they must have.

The command looks for them and computes the digests once. The processes that hand them over read
their contents from disk again, which is the page cache by then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pgalloc.cli.files import KnownFile, find_files


@dataclass(frozen=True, slots=True)
class DataSet:
    """The files that are handed over, in a stable order."""

    files: tuple[KnownFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one copy of all contents."""
        return sum(self.sizes)

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each file, hexadecimal."""
        return [file.digest for file in self.files]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return [file.size for file in self.files]

    def contents(self) -> Iterator[bytes]:
        """Reads one file after the other."""
        for file in self.files:
            yield Path(file.path).read_bytes()

    def save(self, file: Path) -> None:
        """Writes the list of files, for the processes that hand them over."""
        file.write_text(json.dumps(self.files))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what save() wrote."""
        return cls(tuple(KnownFile(*entry) for entry in json.loads(file.read_text())))


def find_data(path: str, *, limit: int, without: Collection[str] = ()) -> DataSet:
    """At most ``limit`` bytes of what can be read below ``path``. Raises OSError for ``path``."""
    files = []
    for source in find_files(path, limit=limit, page_size=1, without=without).files:
        try:
            content = Path(source.path).read_bytes()
        except OSError:
            continue  # the demo is about memory: another file does as well
        digest = hashlib.sha256(content).hexdigest()
        files.append(KnownFile(source.path, len(content), digest))
    return DataSet(tuple(files))
