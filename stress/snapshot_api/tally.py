"""What was done how often."""

from __future__ import annotations

import threading
from collections import Counter


class Tally:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """So many more."""
        with self._lock:
            self._counts[what] += count

    def report(self) -> None:
        """Print it."""
        for what, count in sorted(self._counts.items()):
            print(f"  {what:<32} {count:>12}")
