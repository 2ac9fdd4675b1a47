"""Threads that do something until they are told to stop, and the first thing that went wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

from snapshot_api.stamps import PromiseBrokenError

_PATIENCE_S = 60.0


class Crew:
    """For one round. A thread that fails stops the others."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, job: Callable[[], None], name: str) -> None:
        """Run a job in a thread of its own."""
        thread = threading.Thread(target=self._guarded, args=(job,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self) -> None:
        """Wait for all threads, told to stop or not, and raise what they found."""
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            if thread.is_alive() and self.failure is None:
                raise PromiseBrokenError(f"the thread {thread.name} does not come to an end")
        self._threads.clear()
        if self.failure is not None:
            raise self.failure

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.failure = self.failure or error
            self.stop.set()
