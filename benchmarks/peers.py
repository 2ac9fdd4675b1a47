"""Other processes that are running already, as pages are handed to them: spawned, one call at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")


class Peer:
    """A process that calls what it is told to. Ends with this one, at the latest."""

    def __init__(self) -> None:
        self._calls: Any = _CONTEXT.Queue()
        self._answers, answers = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_serve, args=(self._calls, answers), daemon=True)
        self._process.start()
        answers.close()  # so that its death is noticed
        self.ask(int)

    @property
    def pid(self) -> int:
        """Its number."""
        pid = self._process.pid
        assert pid is not None, "it has been started"
        return pid

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Arguments go through a Queue, the result comes through a Pipe."""
        self._calls.put((function, arguments))
        return self._answers.recv()

    def close(self) -> None:
        """Wait for its end."""
        self._calls.put(None)
        self._process.join()
        self._process.close()
        self._calls.close()
        self._answers.close()


def _serve(calls: Any, answers: Any) -> None:
    while (call := calls.get()) is not None:
        function, arguments = call
        answers.send(function(*arguments))
        del call, arguments  # what was handed over is let go of


@lru_cache(maxsize=1)
def the_peer() -> Peer:
    """One for all rounds."""
    return Peer()
