"""The tests, and which of them reach which mutants.

A test is a unit of tests/native ("native: placement") or the name that pytest gives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mutation.mutant import Mutant
from mutation.tree import Tree

NATIVE = "native: "
REACHED_BYTES = 4096  # as in mutants.h
_PLUGIN = Path(__file__).parents[1]


@dataclass(frozen=True)
class Test:
    """One test, as it was when no mutant was chosen."""

    name: str
    seconds: float
    reached: frozenset[int]

    @property
    def native(self) -> bool:
        """Whether it is a unit of tests/native."""
        return self.name.startswith(NATIVE)


class StoppedError(Exception):
    """The run was stopped before the tests had an answer."""


class Suite:
    """Runs the tests of a tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stops = False
        self._words: dict[str, set[str]] = {}  # of files of tests

    def stop(self) -> None:
        """End what runs, from any thread: failing() raises StoppedError from here on."""
        self._stops = True
        for process in list(self._running):
            _kill_group(process)

    def trace(self, *, with_python: bool) -> list[Test]:
        """Run everything without a mutant: all must pass."""
        folder = self._tree.work / "trace"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        tests = [self._trace_native(unit, folder / "native") for unit in self._native_units()]
        if not with_python:
            return tests
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"),
            *("-p", "mutation.reach_plugin", "--deselect", "tests/unit/test_native.py"),
        ]
        env = self._tree.environment(None) | {"PGALLOC_MUTANTS_FOLDER": str(folder)}
        env["PYTHONPATH"] += f"{os.pathsep}{_PLUGIN}"
        with (folder / "pytest.out").open("w") as out:
            done = subprocess.run(
                command, cwd=self._tree.path, env=env, stdout=out, stderr=out, check=False
            )
        if done.returncode != 0:
            raise RuntimeError(f"without a mutant, tests fail: {folder / 'pytest.out'}")
        lines = [
            json.loads(line)
            for path in folder.glob("tests.*.jsonl")
            for line in path.read_text().splitlines()
        ]
        # What runs when the package is imported matters to every test.
        always = frozenset(number for line in lines for number in line.get("imported", []))
        for line in lines:
            if "test" in line:
                tests.append(Test(line["test"], line["s"], always.union(line["reached"])))
        return tests

    def mentions(self, test: Test, mutant: Mutant) -> bool:
        """Whether its file has the name of the function, or what the mutant has in quotes."""
        if test.native:
            return False
        file = test.name.partition("::")[0]
        if file not in self._words:
            self._words[file] = set(re.findall(r"\w+", (self._tree.path / file).read_text()))
        names = [mutant.function.rpartition("::")[2], *re.findall(r'"(\w+)"', mutant.what)]
        # A single word is in most files.
        return not self._words[file].isdisjoint(name for name in names if "_" in name)

    def _native_units(self) -> list[str]:
        command = [str(self._tree.native_tests), "--list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        return sorted({name.partition(".")[0] for name in listed.stdout.split()})

    def _trace_native(self, unit: str, path: Path) -> Test:
        path.write_bytes(bytes(REACHED_BYTES))
        begin = time.monotonic()
        done = subprocess.run(
            [self._tree.native_tests, f"{unit}."],
            env=self._tree.environment(None, path),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"without a mutant, native tests fail:\n{done.stderr[-2000:]}")
        reached = frozenset(number for number, byte in enumerate(path.read_bytes()) if byte)
        return Test(NATIVE + unit, time.monotonic() - begin, reached)

    def failing(self, tests: list[Test], number: int) -> str | None:
        """The first test that fails with the mutant, and how; or None. One that hangs fails."""
        for test in tests:
            if not test.native:
                continue
            command = [str(self._tree.native_tests), f"{test.name.removeprefix(NATIVE)}."]
            how, _ = self._run(command, number, test.seconds)
            if how is not None:
                return f"{test.name} ({how})"
        tests = [test for test in tests if not test.native]
        while tests:
            how, output = self._run_pytest(tests, number)
            if how is None:
                return None
            found = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
            at = next((i for i, test in enumerate(tests) if test.name in found), None)
            if at is None:
                return f"pytest ({how})"
            # One that passes by itself has found nothing: the machine is busy, or a test before it
            # is to blame.
            if self._run_pytest(tests[at : at + 1], number)[0] is not None:
                return f"{tests[at].name} ({how})"
            tests = tests[at + 1 :]
        return None

    def _run_pytest(self, tests: list[Test], number: int) -> tuple[str | None, str]:
        slowest = max(test.seconds for test in tests)
        command = [
            *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"),
            *("--timeout", str(round(30 + 10 * slowest)), "--tb=no"),
            *(test.name for test in tests),
        ]
        return self._run(command, number, sum(test.seconds for test in tests))

    def _run(self, command: list[str], number: int, seconds: float) -> tuple[str | None, str]:
        """How a program failed, or None; and what it printed. Its whole group ends here."""
        if self._stops:
            raise StoppedError
        how = None
        # Into a file: a pipe would stay open as long as what the program left behind.
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                command,
                cwd=self._tree.path,
                env=self._tree.environment(number),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            try:
                status = process.wait(timeout=20 + 8 * seconds)
                if status < 0:
                    how = signal.Signals(-status).name
                elif status > 0:
                    how = f"exit status {status}"
            except subprocess.TimeoutExpired:
                how = "hung"
            _kill_group(process)
            process.wait()
            self._running.remove(process)
            out.seek(0)
            output = out.read().decode(errors="replace")
        if self._stops:
            raise StoppedError
        return how, output


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
