"""The values of a served cache, looked up for its peers.

The broker is native and never waits for the GIL; what only Python knows it asks the thread that
runs here. Peers that ask for something else are answered meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pgalloc import _core, fork
from pgalloc.errors import ClosedError, Error
from pgalloc.threads import PARK_TIMEOUT_S, Thread

if TYPE_CHECKING:
    from pgalloc._core import FileRange
    from pgalloc.memory_file import MemoryFile

_log = logging.getLogger("pgalloc")


class Value(NamedTuple):
    """A value of a cache: bytes ``[start, stop)`` of pages; ``view`` keeps them as they are."""

    file: MemoryFile
    range: FileRange
    start: int
    stop: int
    view: memoryview


Lookup = Callable[[bytes], "Value | None"]
"""A served cache: the value of an encoded key."""


class LookupThread:
    """Answers what peers ask of one cache, until its questions are closed: Server.close()."""

    def __init__(self, lookup: Lookup) -> None:
        self.questions = _core.Lookups()
        self._lookup = lookup
        # Of values that peers hold, by the number of the question.
        self._views: dict[int, memoryview] = {}
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to answer."""
        fork.register(self)
        self._start()

    def _start(self) -> None:
        self.questions.resume()
        thread = self._thread = Thread(lambda: self._run(thread))
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _run(self, me: Thread) -> None:
        # Whatever fails costs the request that it belongs to: without this thread none is answered.
        while self._thread is me:  # else another one took over while this one was looking up
            number = 0  # of no question
            try:
                event = self.questions.next()
                if event is None:
                    return
                look_up, number, key = event
                if look_up:
                    self._answer(number, key)
                else:
                    self._views.pop(number, None)
            except BaseException as error:
                self._give_up(number, error)

    def _answer(self, number: int, key: bytes) -> None:
        try:
            value = self._lookup(key)
            if value is None:
                self.questions.answer_nothing(number)
                return
            self._views[number] = value.view
            wanted = self.questions.answer(
                number, value.file, value.range, value.start, value.stop
            )
            if not wanted:
                del self._views[number]
        except BaseException as error:
            self._views.pop(number, None)
            name, text = type(error).__name__, str(error)[:1000]
            if not (isinstance(error, Error) and text):
                text = f"the value cannot be looked up: {name}" + (f": {text}" if text else "")
            self.questions.answer_error(number, isinstance(error, ClosedError), text)
            if not isinstance(error, (Error, OSError, MemoryError, ValueError)):
                _log.error("a value cannot be looked up for a peer", exc_info=error)

    def _give_up(self, number: int, error: BaseException) -> None:
        with suppress(BaseException):
            self.questions.fail(number)  # unless it has an answer
        with suppress(BaseException):
            if not isinstance(error, MemoryError):
                _log.error("a value cannot be looked up for a peer", exc_info=error)

    # --- forks -----------------------------------------------------------------------------------

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: stop the thread."""
        thread, self._thread = self._thread, None
        if thread is None or thread.is_current():
            return
        self.questions.stop()
        thread.join(PARK_TIMEOUT_S)  # a look-up may wait for what the thread that forks has

    def resume(self) -> None:
        """Undo park()."""
        if self._thread is None and not self.questions.closed:
            self._start()

    def reset_in_child(self) -> None:
        """In a forked child: the peers are its parent's."""
        self._thread = None
        self._views.clear()
