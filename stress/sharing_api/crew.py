"""The peers there are: they are started, killed and replaced, and the time that takes is noted."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torture_api.marks import PromiseBrokenError

from sharing_api import peer
from sharing_api.post import OWNER, Letter, Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgalloc import MemoryFile

METHODS = ("fork", "spawn", "forkserver")
_RETURN_S_MAX = 60.0
_END_S_MAX = 60.0


@dataclass
class Member:
    """One peer, seen from the owner."""

    process: Any
    line: Line


class Crew:
    """Of the owner; a peer that replaces another gets its number."""

    def __init__(self, file: MemoryFile, seed: int, methods: Sequence[str], **options: Any) -> None:
        self.members: dict[int, Member] = {}
        self.delays_s: list[float] = []  # from a peer's death to the return of its references
        self.started = 0
        self._file = file
        self._seed = seed
        self._random = random.Random(seed)
        self._contexts: list[Any] = [multiprocessing.get_context(method) for method in methods]
        self._options = options

    def start(self, number: int, gifts: Sequence[Letter]) -> None:
        """A peer with this number. A forked one inherits the gifts, others claim them."""
        context = self._random.choice(self._contexts)
        ours, theirs = context.Pipe()
        line = Line(ours)
        self.started += 1
        forks = context.get_start_method() == "fork"
        inherited = [member.line for member in self.members.values()] + [line] if forks else []
        process = context.Process(
            target=peer.run,
            args=(Line(theirs), inherited, self.started, self._seed),
            kwargs={"gifts": gifts, **self._options},
            daemon=True,
        )
        process.start()
        theirs.close()
        self.members[number] = Member(process, line)

    def kill(self, number: int) -> None:
        """By SIGKILL, and wait until the owner has back what the peer held."""
        member = self.members.pop(number)
        pid = member.process.pid
        held = pid in self._holders()
        member.process.kill()
        since = time.monotonic()
        while pid in self._holders():
            if time.monotonic() > since + _RETURN_S_MAX:  # time: a bound on a hang
                raise PromiseBrokenError(f"the references of dead peer {pid} do not come back")
            time.sleep(0.0005)  # time: how exactly the delay is measured
        if held:
            self.delays_s.append(time.monotonic() - since)
        self._bury(member)

    def kill_any(self) -> int:
        """The number of the one that was killed."""
        number = self._random.choice(list(self.members))
        self.kill(number)
        return number

    def expect_end(self, number: int) -> None:
        """Wait for a peer that was told to end. What it still sends is read, or it would wait."""
        member = self.members.pop(number)
        give_up = time.monotonic() + _END_S_MAX
        last = None
        # time: a bound on a hang
        while member.process.exitcode is None and time.monotonic() < give_up:
            member.process.join(0.01)
            last = member.line.last_waiting() or last
        last = member.line.last_waiting() or last
        status = member.process.exitcode
        if status is None:
            raise PromiseBrokenError(f"peer {number} does not come to an end")
        if status != 0:
            found = last.open() if last is not None and last.to == OWNER else "nothing"
            raise PromiseBrokenError(f"peer {number} ended with status {status}, found: {found}")
        self._bury(member)

    def kill_all(self) -> None:
        """Something was found: all processes stop."""
        for member in self.members.values():
            member.process.kill()

    def _holders(self) -> set[int]:
        return {lease.pid for lease in self._file.leases() if lease.claimed}

    def _bury(self, member: Member) -> None:
        member.process.join()
        member.process.close()
        member.line.close()
