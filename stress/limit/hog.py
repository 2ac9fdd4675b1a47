"""Holds the GIL in long copies, as a thread does that parses, compresses or serializes."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

_REST_S = 0.001


class Hog:
    """A thread that copies ``nbytes`` again and again, into fresh memory each time.

    The interpreter does not let go of the GIL within a copy, and the page faults of the new memory
    happen inside it: at the limit, such a thread waits in the kernel and has the GIL.
    """

    def __init__(self, nbytes: int) -> None:
        self.copies = 0
        self.longest_s = 0.0
        self._source = bytearray(b"\x5a") * nbytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hog", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            begin = time.perf_counter()
            copy = bytes(self._source)
            self.longest_s = max(self.longest_s, time.perf_counter() - begin)
            self.copies += 1
            del copy
            # time: a rest in which others may run, or there is no limit to keep
            time.sleep(_REST_S)

    def __enter__(self) -> Self:
        if self._source:
            self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._source:
            self._thread.join()
