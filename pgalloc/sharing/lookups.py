"""The values of a served cache, looked up for its peers.

The broker is native and never waits for the GIL; what only Python knows it asks the thread that
runs here. Peers that ask for something else are answered meanwhile.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from pgalloc import _core, fork
from pgalloc.allocation import Allocation
from pgalloc.errors import ClosedError, Error

_log = logging.getLogger("pgalloc")


class Value(NamedTuple):
    """A value of a cache: bytes ``[start, stop)`` of pages; ``view`` keeps them as they are."""

    pages: Allocation
    start: int
    stop: int
    view: memoryview


Lookup = Callable[[bytes], "Value | None"]
"""A served cache: the value of an encoded key."""


class _Running:
    """A thread. Not a threading.Thread: a signal handler that raises while that starts can leave it
    waiting for ever."""

    def __init__(self) -> None:
        self.ident = self.native_id = 0
        self.runs = _thread.allocate_lock()  # held until the end

    def join(self) -> None:
        """Wait until the kernel has forgotten it."""
        with self.runs:
            pass
        if self.native_id != 0:
            _core.wait_until_thread_is_gone(self.native_id)


class LookupThread:
    """Answers what peers ask of one cache, until :meth:`close`."""

    def __init__(self, lookup: Lookup) -> None:
        self.questions = _core.Lookups()
        self._lookup = lookup
        # Of values that peers hold, by the number of the question. Only the thread uses it.
        self._views: dict[int, memoryview] = {}
        self._running: _Running | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to answer."""
        fork.register(self)
        self._start()

    def _start(self) -> None:
        self.questions.resume()
        running = _Running()
        running.runs.acquire()
        running.ident = _thread.start_new_thread(self._run, (running,))
        self._running = running

    def close(self) -> None:
        """Answer nothing more. What peers hold stays as it is until they let go of it."""
        self._closed = True
        self.questions.close()

    def _run(self, running: _Running) -> None:
        running.native_id = threading.get_native_id()
        try:
            while (event := self.questions.next()) is not None:
                look_up, number, key = event
                if look_up:
                    self._answer(number, key)
                else:
                    self._views.pop(number, None)
        finally:
            running.runs.release()

    def _answer(self, number: int, key: bytes) -> None:
        try:
            value = self._lookup(key)
            if value is None:
                self.questions.answer_nothing(number)
                return
            pages = value.pages
            self._views[number] = value.view
            wanted = self.questions.answer(number, pages.file, pages.range, value.start, value.stop)
            if not wanted:
                del self._views[number]
        except BaseException as error:
            self._views.pop(number, None)
            if not isinstance(error, (Error, OSError, MemoryError, ValueError)):
                _log.error("a value cannot be looked up for a peer", exc_info=error)
            self.questions.answer_error(number, isinstance(error, ClosedError), str(error)[:1000])

    # --- forks -----------------------------------------------------------------------------------

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: stop the thread."""
        running, self._running = self._running, None
        if running is None or running.ident == threading.get_ident():
            return
        self.questions.stop()
        running.join()

    def resume(self) -> None:
        """Undo park()."""
        if self._running is None and not self._closed:
            self._start()

    def reset_in_child(self) -> None:
        """In a forked child: the peers are its parent's."""
        self._running = None
        self._closed = True
        self._views.clear()
