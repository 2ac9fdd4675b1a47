"""The owner: it has the pages, carries the post, kills peers, makes memory short, and audits.

One thread does all that, so the only other thread here is pgalloc's own. When peers are forked,
they get just what is in ``estate``.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from torture_api import marks
from torture_api.marks import PromiseBrokenError

from pgalloc import PAGE_SIZE, MemoryFile
from pgalloc.testing import ManualPressure
from sharing_api import audit
from sharing_api.holding import Holding
from sharing_api.post import OWNER, Envelope, Finding, Letter, Order, Report, Stillborn
from sharing_api.trouble import OF_OWNERS, Trouble

if TYPE_CHECKING:
    from sharing_api.crew import Crew, Member

_ESTATE_MAX = 12
_ROUND_S = 2.0
_REPORT_S_MAX = 120.0
_DEMAND_MAX = 32 << 20


class Owner:
    """Of one file, whose peers are a crew."""

    def __init__(
        self,
        file: MemoryFile,
        crew: Crew,
        pressure: ManualPressure,
        seed: int,
        kill_every_s: float,
        trouble: float,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._file = file
        self._crew = crew
        self._pressure = pressure
        self._random = random.Random(seed)
        self._kill_every_s = kill_every_s
        self._trouble = Trouble(OF_OWNERS, seed, trouble)
        self._estate = [self._new_holding(number) for number in range(4)]

    def _new_holding(self, number: int) -> Holding:
        pages = self._file.allocate(8 * PAGE_SIZE)
        first = 0xFF << 56 | number << 16
        marks.write(pages, first)
        return Holding(first, pages)

    # --- rounds ----------------------------------------------------------------------------------

    def start(self, peers: int) -> None:
        """Start the peers."""
        for number in range(peers):
            self._start(number)

    def _start(self, number: int) -> None:
        self._crew.start(number, [self._letter(holding) for holding in self._estate])

    def _replace(self, number: int) -> None:
        """A peer could not begin: another one tries."""
        self._crew.expect_end(number)
        self._start(number)
        self.counts["peers that could not begin"] += 1

    def _letter(self, holding: Holding) -> Letter:
        assert holding.allocation is not None
        return Letter(holding.first, holding.allocation)

    def round(self) -> None:
        """Let the peers loose for a while; some die. Then all are quiet, and audited."""
        end = time.monotonic() + _ROUND_S
        next_kill = time.monotonic() + self._random.expovariate(1 / self._kill_every_s)
        while (now := time.monotonic()) < end:  # time: how long a round is
            with self._trouble.some():  # of the broker: this thread only waits
                self._wait(min(next_kill, end) - now)
            for number, envelope in self._post(0):
                self._deliver(number, envelope)
            if time.monotonic() >= next_kill:  # time: the load: when it is killed
                self._start(self._crew.kill_any())
                next_kill += self._random.expovariate(1 / self._kill_every_s)
            if self._random.random() < 0.02:
                self._demand()
        self._audit()

    def _demand(self) -> None:
        self.counts["bytes discarded"] += self._pressure.demand(self._random.randrange(_DEMAND_MAX))

    # --- post ------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> None:
        """Until something has come from a peer."""
        wait([member.line for member in self._crew.members.values()], max(0.0, timeout_s))

    def _post(self, timeout_s: float) -> list[tuple[int, Envelope]]:
        """What has come from the peers, one piece from each."""
        lines: dict[Any, int] = {
            member.line: number for number, member in self._crew.members.items()
        }
        post = []
        for line in wait(list(lines), max(0.0, timeout_s)):
            number = lines[line]
            try:
                post.append((number, self._crew.members[number].line.receive()))
            except (EOFError, ConnectionResetError):
                self._crew.expect_end(number)
                raise PromiseBrokenError(f"peer {number} ended without being told to") from None
        return post

    def _deliver(self, number: int, envelope: Envelope) -> None:
        if envelope.to == OWNER:
            self._open(number, envelope)
            return
        line = self._crew.members[envelope.to].line
        if line.has_room():
            line.forward(envelope)
        else:
            self.counts["letters lost"] += 1

    def _open(self, number: int, envelope: Envelope) -> None:
        content = envelope.open()
        if isinstance(content, Finding):
            raise PromiseBrokenError(f"peer {number} found:\n{content.text}")
        if isinstance(content, Stillborn):
            self._replace(number)
            return
        holding = Holding(*content)
        holding.check("when it came to the owner")
        self._estate.append(holding)
        self.counts["letters to the owner"] += 1
        if len(self._estate) > _ESTATE_MAX:
            self._estate.pop(self._random.randrange(len(self._estate))).drop()

    # --- audits ----------------------------------------------------------------------------------

    def _audit(self) -> None:
        """Letters that are on their way when it begins are lost, and their pages come back."""
        reports = self._reports()
        self._file.drop_unclaimed()
        pids = {number: member.process.pid for number, member in self._crew.members.items()}
        self._expect({pids[number]: report.ranges for number, report in reports.items()})
        for report in reports.values():
            self.counts.update(report.counts)
        for member in self._crew.members.values():
            member.line.send(Order.GO_ON)
        self.counts["calls that failed"] += self._trouble.failures
        self._trouble.failures = 0
        self.counts["audits"] += 1

    def _reports(self) -> dict[int, Report]:
        self._tell_all(Order.REPORT)
        deadline = time.monotonic() + _REPORT_S_MAX
        reports: dict[int, Report] = {}
        while len(reports) < len(self._crew.members):
            if time.monotonic() > deadline:  # time: a bound on a hang
                raise PromiseBrokenError("a peer does not answer")
            for number, envelope in self._post(1.0):
                if envelope.to != OWNER:
                    self.counts["letters lost"] += 1
                elif isinstance(content := envelope.open(), Report):
                    reports[number] = content
                elif isinstance(content, Finding):
                    raise PromiseBrokenError(f"peer {number} found:\n{content.text}")
                elif isinstance(content, Stillborn):
                    self._replace(number)
                    self._crew.members[number].line.send(Order.REPORT)
                else:
                    Holding(*content).drop()
        return reports

    def _expect(self, peers: dict[int, list[tuple[int, int]]]) -> None:
        own = [(holding.range.start, holding.range.end) for holding in self._estate]
        audit.expect(self._file, peers, own)
        for holding in self._estate:
            holding.check("in an audit")
        audit.expect_kernel_agrees(self._file)

    def _tell_all(self, order: Order) -> None:
        for member in self._crew.members.values():
            member.line.send(order)

    # --- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """All peers end, in three ways; then the owner lets go, and nothing may be left."""
        for number, member in list(self._crew.members.items()):
            self._end(number, member)
        self._file.drop_unclaimed()
        self._expect({})
        while self._estate:
            self._estate.pop().drop()
        self._expect({})
        if self._file.total_usage() != 0:
            raise PromiseBrokenError("the kernel still stores pages")

    def _end(self, number: int, member: Member) -> None:
        if number % 3 == 0:
            self._crew.kill(number)
        else:
            member.line.send(Order.LEAVE if number % 3 == 1 else Order.END)
            self._crew.expect_end(number)
