"""Another process that does what a test says, one call at a time: spawned, forked or served."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from waiting import eventually

import pgalloc
from pgalloc import PAGE_SIZE
from pgalloc.sharing import connection
from pgalloc.sharing.tokens import Address

TIMEOUT_S = 60.0


def _serve(pipe: Connection) -> None:
    """In the peer: keeps what calls return, by name, and sends back what can be sent."""
    kept: dict[str, Any] = {}
    while True:
        try:
            act, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, act(kept, *arguments)))
        except BaseException as error:
            text = traceback.format_exc()
            pipe.send((False, (type(error), str(error), text)))


class Peer:
    """One process. ``do(function, ...)`` calls ``function(kept, ...)`` there."""

    def __init__(self, method: str = "spawn") -> None:
        context: Any = multiprocessing.get_context(method)
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return int(pid)

    def do(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """The result, or the exception."""
        self._pipe.send((act, arguments))
        assert self._pipe.poll(TIMEOUT_S), "the peer hangs"
        done, result = self._pipe.recv()
        if done:
            return result
        kind, text, trace = result
        try:
            error = kind(text)
        except TypeError:  # FillError wants more
            error = AssertionError(f"{kind.__name__}: {text}")
        error.add_note(trace)
        raise error

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(TIMEOUT_S)
        self._pipe.close()

    def close(self) -> None:
        self._pipe.close()
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode is not None, "the peer does not end"
        self.process.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.is_alive():
            self.close()


def first() -> Iterator[Peer]:
    """For a fixture: a peer, once all is there that starts when something is first shared."""
    with pgalloc.MemoryFile() as keeper, Peer("forkserver"), Peer() as peer:
        peer.do(keep, "for ever", keeper.allocate(PAGE_SIZE))
        pgalloc.share(None).release()
        yield peer


def see_ends() -> None:
    """Let go of the connections to owners that have ended, as the next request would."""
    its = connection.settled()

    def seen() -> bool:
        connection._known(its, Address(b"no such owner", b"", b"", 0))
        return all(map(_answers, list(its.by_owner.values())))

    eventually(seen, "the end of all owners that have ended")


def _answers(to_owner: connection.Connection) -> bool:
    try:
        os.kill(to_owner.owner_pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- what peers do -------------------------------------------------------------------------------


def keep(kept: dict[str, Any], name: str, value: Any) -> None:
    kept[name] = value


def drop(kept: dict[str, Any], *names: str) -> None:
    for name in names:
        del kept[name]


def send_back(kept: dict[str, Any], name: str) -> Any:
    return kept[name]


def read(kept: dict[str, Any], name: str, start: int, stop: int) -> bytes:
    return bytes(memoryview(kept[name])[start:stop])


def write(kept: dict[str, Any], name: str, offset: int, data: bytes) -> None:
    memoryview(kept[name])[offset : offset + len(data)] = data


def call(kept: dict[str, Any], name: str, method: str, *arguments: Any, **options: Any) -> Any:
    return getattr(kept[name], method)(*arguments, **options)


def call_and_keep(kept: dict[str, Any], name: str, method: str, new: str, *arguments: Any) -> None:
    kept[new] = getattr(kept[name], method)(*arguments)


def attribute(kept: dict[str, Any], name: str, *path: str) -> Any:
    value = kept[name]
    for part in path:
        value = getattr(value, part)
    return value


def run(kept: dict[str, Any], code: str) -> Any:
    """Runs statements; what they assign to ``result`` comes back."""
    names: dict[str, Any] = {"kept": kept}
    exec(code, names)
    return names.get("result")


# --- whole processes: here, because they have to be found by a spawned interpreter ----------------


def echo(a: Any, results: Any) -> None:
    view = a.view()
    view[0:5] = bytes(view[0:5]).upper()
    b = a.file.allocate(2 * PAGE_SIZE)
    b.view()[:] = b"b" * (2 * PAGE_SIZE)
    results.put((os.getpid(), bytes(view[0:5]), b))


def length(a: Any) -> int:
    return len(memoryview(a))


def own(pipe: Any) -> None:
    with pgalloc.MemoryFile() as mf:
        a = mf.allocate(PAGE_SIZE)
        a.view()[:9] = b"inherited"
        pipe.send(a)
        pipe.recv()
