"""A run over many mutants, which can be stopped and gone on with at any time.

Invariants:
1. What was killed stays killed until its file changes; what was not is tried again after any change
   of csrc, the package or the tests.
2. No two mutants that are built change the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mutation.mutant import Mutant, overlap
from mutation.suite import REACHED_BYTES, Suite, Test
from mutation.tree import ROOT, BuildError, Tree, digest

_ROOM_MIN = 12
_FINDER = hashlib.sha256(Path(__file__).with_name("sites.py").read_bytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one mutant."""

    name: str
    room: str
    kind: str
    line: int
    outcome: str  # killed; survived; unreached; unfinished: its tests take longer than was allowed
    by: str  # the test that killed it, and how
    reaching: int  # tests that reach it
    file: str  # the state of its file
    all: str  # the state of csrc, the package and the tests


class Campaign:
    """Draws mutants, builds them, tries them. What is known is in build/mutants."""

    def __init__(self, work: Path, *, with_python: bool) -> None:
        self._work = work
        self._work.mkdir(parents=True, exist_ok=True)
        self._with_python = with_python
        self._tree = Tree(work, with_python=with_python)
        self._suite = Suite(self._tree)
        self._csrc = digest("csrc")[:16]
        self._all = digest("csrc", "pgalloc", "tests")[:16]
        self._tests: list[Test] = []
        self._killers: list[str] = []  # tests that killed, the last one first
        self._lock = threading.Lock()
        self.mutants: dict[int, Mutant] = {}

    # --- Which ------------------------------------------------------------------------------------

    def draw(self, count: int, seed: int, room: str | None) -> list[Mutant]:
        """At random: each room gives its share by size, and a dozen at least. Or from one room."""
        from mutation import sites  # needs libclang

        state = f"{self._csrc} {_FINDER}"
        everything = self._kept(
            "sites",
            state,
            lambda: [dataclasses.asdict(each) for each in sites.find(ROOT / "csrc", processes=2)],
        )
        mutants = [Mutant(**fields) for fields in everything]
        if room is not None:
            mutants = [mutant for mutant in mutants if mutant.room == room]
        refused = set(self._kept("refused", self._csrc, list))
        drawn: list[Mutant] = []
        for _, inside in sites.by_room(mutants):
            wanted = max(_ROOM_MIN, round(count * len(inside) / len(mutants)))
            picked: list[Mutant] = []
            for mutant in sorted(inside, key=lambda each: each.draw(seed)):
                if len(picked) == wanted:
                    break
                if mutant.name not in refused and not any(overlap(mutant, p) for p in picked):
                    picked.append(mutant)
            drawn += picked
        return drawn

    def _kept(self, name: str, state: str, make: Callable[[], list[Any]]) -> list[Any]:
        """What was made for this state before, or what is made now."""
        path = self._work / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["state"] == state:
                return list(kept["values"])
        values = make()
        self._keep(name, state, values)
        return values

    def _keep(self, name: str, state: str, values: list[Any]) -> None:
        fresh = self._work / f"{name}.new"
        fresh.write_text(json.dumps({"state": state, "values": values}))
        os.replace(fresh, self._work / f"{name}.json")

    # --- Built, and reached -----------------------------------------------------------------------

    def prepare(self, choose: Callable[[], Iterable[Mutant]]) -> None:
        """Build what is chosen, without what does not compile, and see what reaches it."""
        self._tree.copy()
        while True:
            self._number(choose())
            self._tree.mutate(self.mutants)
            print(f"building {len(self.mutants)} mutants", flush=True)
            try:
                self._tree.build()
                break
            except BuildError as error:
                self._refuse(error)
        names = sorted(mutant.name for mutant in self.mutants.values())
        state = f"{self._all} {names}"
        print("running the tests without a mutant", flush=True)
        tests = self._kept(
            "tests",
            state,
            lambda: [
                {"name": each.name, "seconds": each.seconds, "reached": sorted(each.reached)}
                for each in self._suite.trace(with_python=self._with_python)
            ],
        )
        self._tests = [
            Test(fields["name"], fields["seconds"], frozenset(fields["reached"]))
            for fields in tests
        ]

    def _number(self, mutants: Iterable[Mutant]) -> None:
        chosen: list[Mutant] = []
        for mutant in mutants:
            if not any(overlap(mutant, other) for other in chosen):
                chosen.append(mutant)
        if len(chosen) > REACHED_BYTES:
            raise ValueError(f"{REACHED_BYTES} mutants at most, see mutants.h")
        self.mutants = dict(enumerate(chosen))

    def _refuse(self, error: BuildError) -> None:
        def at(mutant: Mutant) -> bool:
            return any(
                mutant.file == file and mutant.line <= line <= mutant.line + mutant.lines
                for file, line in error.places
            )

        # One by name may have a neighbour in its line.
        names = {m.name for m in self.mutants.values() if m.kind != "by name" and at(m)}
        if not names:
            raise error
        print(f"{len(names)} do not compile")
        self._keep("refused", self._csrc, [*self._kept("refused", self._csrc, list), *names])

    # --- Tried ------------------------------------------------------------------------------------

    def results(self) -> dict[str, Result]:
        """What is known of the mutants that were built, by their names."""
        path = self._work / "results.jsonl"
        if not path.exists():
            return {}
        known = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
        return {
            result.name: result
            for result in known
            if result.all == self._all
            or (result.outcome == "killed" and result.file == _state_of(result.name))
        }

    def run(self, *, jobs: int, seconds: float, only: str = "", last: Collection[str] = ()) -> None:
        """Try what is not known yet, with tests that took ``seconds`` together at most.

        Those named in ``last``, which will survive, come after the others.
        """
        known = self.results()
        left = [
            number
            for number, mutant in self.mutants.items()
            if only in mutant.name
            and (mutant.name not in known or known[mutant.name].outcome == "unfinished")
        ]
        left.sort(key=lambda number: self.mutants[number].name in last)
        print(f"{len(self.mutants)} mutants, {len(left)} to be tried", flush=True)
        pool = ThreadPoolExecutor(jobs)
        try:
            tried = [pool.submit(self._try, number, seconds) for number in left]
            for done, future in enumerate(as_completed(tried), 1):
                result = future.result()
                with (self._work / "results.jsonl").open("a") as out:
                    out.write(json.dumps(dataclasses.asdict(result)) + "\n")
                by = f" by {result.by}" if result.by else ""
                print(f"[{done}/{len(left)}] {result.outcome}{by}: {result.name}", flush=True)
        finally:
            self._suite.stop()
            pool.shutdown(cancel_futures=True)

    def _try(self, number: int, seconds: float) -> Result:
        mutant = self.mutants[number]
        reaching = [test for test in self._tests if number in test.reached]
        tests, cut = self._in_order(reaching, mutant, seconds)
        by = None
        # A few at first: most mutants fail these.
        for part in (tests[:30], tests[30:]):
            by = by or (self._suite.failing(part, number) if part else None)
        outcome = "killed" if by else "unfinished" if cut else "survived"
        if by:
            with self._lock:
                self._killers.insert(0, by.rpartition(" (")[0])
        return Result(
            mutant.name,
            mutant.room,
            mutant.kind,
            mutant.line,
            outcome if reaching else "unreached",
            by or "",
            len(reaching),
            _state_of(mutant.name),
            self._all,
        )

    def _in_order(
        self, tests: list[Test], mutant: Mutant, seconds: float
    ) -> tuple[list[Test], bool]:
        """Native tests first, then those about it, those that killed before, and quick ones.

        What reaches little is about what it reaches: it counts as quicker.
        """
        stem = Path(mutant.file).stem
        with self._lock:
            killers = {name: place for place, name in enumerate(reversed(self._killers))}

        def rank(test: Test) -> tuple[bool, bool, int, float]:
            return (
                not test.native,
                stem not in test.name and not self._suite.mentions(test, mutant),
                -killers.get(test.name, -1),
                test.seconds * len(test.reached),
            )

        ordered: list[Test] = []
        spent = 0.0
        for test in sorted(tests, key=rank):
            spent += test.seconds
            if spent > seconds:
                return ordered, True
            ordered.append(test)
        return ordered, False


def _state_of(mutant: str) -> str:
    """Of the file that the mutant of this name changes."""
    path = ROOT / "csrc" / mutant.partition(":")[0]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""
