"""Tests CI itself: the choice of jobs, and the scheduler with toy jobs that fail, hang and litter.

    python -m pytest -o pythonpath=.ci .ci/selftest.py

The scheduler runs as .ci/run runs it, in a folder of its own; what is looked at is what it prints,
and which processes are left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import plan
import pytest
from choice import chains, choose, with_needs
from plan import Job

_HERE = Path(__file__).resolve().parent

_HANGING = """
import threading, time
def the_first_waits(): time.sleep(1000)
def the_second_waits(): time.sleep(1000)
for wait in (the_first_waits, the_second_waits):
    threading.Thread(target=wait).start()
"""

# Its command line is all by which it can be told.
_LITTER_S = 1000 + os.getpid()

_FUNCTIONS = f"""
job_good() {{ echo "all is well"; }}
job_long_output() {{ seq 1000 1300; }}
job_bad() {{
  seq 1000 1300
  echo "Falsifying example: test(x=1)"
  echo "its seed is 4711" >"$CI_LOGS/own.log"
  exit 7
}}
job_after_bad() {{ echo "never to be seen"; }}
job_after_after_bad() {{ echo "never to be seen"; }}
job_hang() {{
  setsid sleep 1000 &
  python3 -c '{_HANGING}'
}}
job_litter() {{ env -i setsid sleep {_LITTER_S} & setsid sleep 1001 & sleep 0.3; }}
job_slow() {{ setsid sleep 1000 & sleep 1000; }}
job_reads() {{ ! read -r line; }}
job_unset() {{ echo "$not_set"; }}
"""
for _name in ("one", "two", "both", "alone"):
    _FUNCTIONS += f"""
job_{_name}() {{
  echo "$CI_JOB begins $(date +%s%N)" >>"$work/times"
  sleep 0.5
  echo "$CI_JOB ends $(date +%s%N)" >>"$work/times"
}}
"""


@dataclass(frozen=True)
class Done:
    """What a run printed, its exit status."""

    output: str
    status: int

    def block(self, name: str) -> str:
        """What was printed from the end of a job to the start or end of another, or the table."""
        block = rf"^=== {name} (passed|FAILED).*?(?=^=== |^job .* result$)"
        found = re.search(block, self.output, re.M | re.S)
        return found.group() if found else ""

    def started(self) -> list[str]:
        """Which jobs, in order."""
        return re.findall(r"^=== (\w+) started", self.output, re.M)


class Toys:
    """A folder for a plan of toy jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "toys.sh").write_text(_FUNCTIONS)

    def start(self, *jobs: Job, names: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start the scheduler with these jobs as its plan."""
        (self.folder / "toys.py").write_text(f"from plan import Job\nCI = {jobs!r}\nLONG = ()\n")
        toys = {"CI_PLAN": str(self.folder / "toys.py"), "CI_JOBS": str(self.folder / "toys.sh")}
        return subprocess.Popen(
            [sys.executable, str(_HERE / "scheduler.py"), "--work", str(self.folder), *names],
            cwd=self.folder,
            env={**os.environ, **toys, "CI_CORES": "2", "work": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *jobs: Job, names: tuple[str, ...] = ()) -> Done:
        """Run them to the end; afterwards no process is left."""
        process = self.start(*jobs, names=names)
        output = process.communicate(timeout=120)[0]
        self.expect_nothing_left()
        return Done(output, process.returncode)

    def expect_nothing_left(self) -> None:
        """No process knows this folder, nor is the one that knows nothing."""
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    environment = (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                litter = f"sleep\0{_LITTER_S}\0".encode()
                if os.fsencode(self.folder) in environment or command == litter:
                    left.append(command)
        assert left == []


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    """A fresh folder."""
    return Toys(tmp_path)


# --- The choice ----------------------------------------------------------------------------------

SMALL, LARGE, RUNS = Job("small", 1, 10), Job("large", 2, 30), Job("runs", 1, 50)


def test_the_longest_chain_is_first() -> None:
    """Its own seconds and those of what waits for it."""
    jobs = [Job("a", 1, 5), Job("b", 1, 1), Job("c", 1, 3, ("b",)), Job("d", 1, 2, ("c",))]
    chain = chains(jobs)
    assert chain == {"a": 5, "b": 6, "c": 5, "d": 2}
    assert choose(jobs[:2], {}, chain, 2, 0) == jobs[1]


@pytest.mark.parametrize(("until", "chosen"), [(110, SMALL), (109, None), (50, None)])
def test_a_small_job_goes_first_only_if_it_delays_nothing(until: float, chosen: Job | None) -> None:
    """At 100 s, of two cores one is idle until then, and a job of two waits."""
    ready = [SMALL, LARGE]
    assert choose(ready, {RUNS: until}, chains(ready), 2, 100) == chosen


def test_a_job_that_is_heavier_than_the_machine_has_it_all() -> None:
    """Nothing is beside it."""
    ready = [SMALL, LARGE]
    assert choose(ready, {}, chains(ready), 1, 0) == LARGE
    assert choose([SMALL], {LARGE: 30}, chains(ready), 1, 0) is None


def test_the_plan_is_sound() -> None:
    """Each job has a function and each function is a job; README's command comes first."""
    table = [*plan.CI, *plan.LONG]
    text = "".join((_HERE / name).read_text() for name in ("jobs.sh", "night.sh"))
    functions = re.findall(r"^job_(\w+)\(\)", text, re.M)
    assert sorted(functions) == sorted(job.name for job in table)
    for job in table:
        needed = with_needs([job.name], table, frozenset())
        assert needed[0].name == "readme_test"
        assert job.weight in (1, 2)
        assert job.limit_s >= 1.5 * job.seconds


# --- The order -----------------------------------------------------------------------------------


def test_weights_are_kept_and_one_that_runs_alone_is_alone(toys: Toys) -> None:
    """Two of weight 1 side by side, one of weight 2 and one that runs alone by themselves."""
    done = toys.run(
        Job("one", 1, 1), Job("two", 1, 1), Job("both", 2, 2), Job("alone", 1, 3, alone=True)
    )
    assert done.status == 0, done.output
    events = [line.split() for line in (toys.folder / "times").read_text().splitlines()]
    events.sort(key=lambda event: int(event[2]))
    said = [f"{name} {what}" for name, what, _ in events]
    assert said[:4] == ["alone begins", "alone ends", "both begins", "both ends"]
    assert {*said[4:6]} == {"one begins", "two begins"}
    assert done.output.splitlines()[-1].startswith("CI passed in")


def test_a_named_job_brings_what_it_needs(toys: Toys) -> None:
    """But not what is there already."""
    table = (Job("good", 1, 1, leaves="there"), Job("one", 1, 1, ("good",)), Job("two", 1, 9))
    assert toys.run(*table, names=("one",)).started() == ["good", "one"]
    (toys.folder / "there").touch()
    assert toys.run(*table, names=("one",)).started() == ["one"]
    assert toys.run(*table).started() == ["two", "good", "one"]
    assert toys.run(*table, names=("unknown",)).status == 2


# --- Failures ------------------------------------------------------------------------------------


def test_a_failed_job(toys: Toys) -> None:
    """It says what it knows, what needs it is not run, and the others are."""
    done = toys.run(
        Job("bad", 2, 9),
        Job("after_bad", 1, 1, ("bad",)),
        Job("after_after_bad", 1, 1, ("good", "after_bad")),
        Job("good", 1, 1),
        Job("long_output", 1, 1),
        Job("unset", 1, 1),
        Job("reads", 1, 1),
    )
    bad = done.block("bad")
    assert "=== bad FAILED (exit 7) after " in bad
    assert "\n1101\n" not in bad  # the last 200 of 302 lines
    assert "\n1102\n" in bad
    assert "bad.log:302: Falsifying example: test(x=1)" in bad
    assert "own.log:1: its seed is 4711" in bad
    assert "--- the end of own.log\nits seed is 4711" in bad

    not_run = re.findall(r"^=== (\w+) not run: (\w+) failed", done.output, re.M)
    assert not_run == [("after_bad", "bad"), ("after_after_bad", "after_bad")]
    assert "never to be seen" not in done.output

    assert "all is well" in done.block("good")
    assert "\n1260\n" not in done.block("long_output")  # the last 40 lines
    assert "\n1261\n" in done.block("long_output")
    assert "=== unset FAILED (exit " in done.block("unset")  # bash -u
    assert "=== reads passed" in done.block("reads")  # the end of its input

    again = done.output[done.output.index("\njob ") :]  # from the table on
    assert re.search(r"^--- bad FAILED \(exit 7\):$", again, re.M)
    assert "own.log:1: its seed is 4711" in again
    assert "all is well" not in again

    assert done.status == 1
    verdict, _, names = done.output.splitlines()[-1].partition(": ")
    assert verdict.startswith("CI FAILED in ")
    assert {*names.split()} == {"bad", "after_bad", "after_after_bad", "unset"}


def test_a_job_that_hangs(toys: Toys) -> None:
    """Its processes, their threads and stacks are shown, wherever they went; then it ends."""
    done = toys.run(Job("hang", 1, 1, limit_s=10), Job("good", 1, 1))
    hang = done.block("hang")
    assert "=== hang FAILED (time-out, limit 10 s) after " in hang
    assert re.search(r"^--- pid \d+, ppid \d+, state S: sleep 1000$", hang, re.M)
    assert re.search(r"^--- pid \d+, ppid \d+, state S: \S*python3 -c", hang, re.M)
    assert len(re.findall(r"^  thread \d+ 'python3", hang, re.M)) == 3
    # py-spy's lines, which name functions that the kernel and gdb know nothing of.
    assert re.search(r"^\s+the_first_waits \(", hang, re.M), hang
    assert re.search(r"^\s+the_second_waits \(", hang, re.M)
    assert done.status == 1
    assert "=== good passed" in done.output


def test_a_job_that_leaves_processes_behind(toys: Toys) -> None:
    """They are named and ended, and it has failed."""
    done = toys.run(Job("litter", 1, 1))
    assert done.status == 1
    assert "=== litter FAILED (left processes behind)" in done.output
    left = re.findall(r"^left behind: pid \d+, ppid \d+, state S: (.*)$", done.output, re.M)
    assert {*left} == {"sleep 1001", f"sleep {_LITTER_S}"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything(toys: Toys, number: signal.Signals) -> None:
    """The scheduler takes its jobs with it."""
    process = toys.start(Job("slow", 1, 1))
    assert process.stdout is not None
    assert "=== slow started" in process.stdout.readline()
    time.sleep(0.5)  # time: it has children by now, or none; both have to end
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert "=== slow FAILED (stopped)" in output
    toys.expect_nothing_left()
