"""Other processes, spawned once, that do what they are told: what memory is handed over to."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from benchmarks import in_peer

_CONTEXT = multiprocessing.get_context("spawn")


class Peer:
    """A process that calls what it is told to. Ends with this one, at the latest."""

    def __init__(self) -> None:
        self._calls: Any = _CONTEXT.Queue()
        self._answers, answers = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_serve, args=(self._calls, answers), daemon=True)
        self._process.start()
        answers.close()  # so that its death is noticed

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

    def warm_up(self) -> None:
        """Wait until it runs, and has imported what it needs for memory."""
        self.ask(in_peer.read, b"\1", 1)

    def close(self) -> None:
        """End it. Not gently: shared_memory would complain that arrays still look into it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._calls.close()
        self._answers.close()


def _serve(calls: Any, answers: Any) -> None:
    while True:
        function, arguments = calls.get()
        answers.send(function(*arguments))
        del arguments  # what was handed over is let go of


@lru_cache(maxsize=1)
def the_peer() -> Peer:
    """One for all rounds, up and running."""
    peer = Peer()
    peer.warm_up()
    return peer
