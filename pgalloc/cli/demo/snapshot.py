"""The demo's steps over an image: save the live file, and restore it in two new processes.

The image lies in a temporary folder that is removed at the end, after an error too. What goes wrong
is among the report's problems; the run goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import pgalloc
from pgalloc.cli.demo.catalogue import HOOK, Entry, encode
from pgalloc.cli.demo.outcome import Outcome
from pgalloc.cli.demo.report import Progress, Report, Step
from pgalloc.cli.units import format_bytes, format_path, format_seconds

RESTORE_S = 900.0
"""How long a new process may take before it is said to hang."""

# The name of a step, and the mode that the restoring process is told.
_MODES = {"restore": "eager", "restore (background)": "background"}


class SnapshotSteps:
    """Saves ``memory_file``, in which the files of ``entries`` lie and the index at ``index``."""

    def __init__(
        self,
        memory_file: pgalloc.MemoryFile,
        index: pgalloc.FileRange,
        entries: Sequence[Entry],
        report: Report,
        progress: Progress,
    ) -> None:
        self._file = memory_file
        self._payload = encode(index, entries)
        self._files = len(entries)
        self._nbytes = sum(entry.range.length for entry in entries if entry.range is not None)
        self._report = report
        self._progress = progress

    def run(self) -> None:
        """All steps. What the machine or the library refuses is a problem, and raises nothing."""
        try:
            with tempfile.TemporaryDirectory(prefix="pgalloc-demo-") as folder:
                image = os.path.join(folder, "demo.pgimg")
                self._save(image)
                for name, mode in _MODES.items():
                    self._restore(name, image, mode)
        except (pgalloc.Error, OSError, MemoryError) as error:
            self._problem(f"save and restore: {type(error).__name__}: {error}")

    def _save(self, image: str) -> None:
        self._progress.begin("save", self._nbytes)
        before = self._account()
        started = time.perf_counter()
        self._file.save_hook(HOOK, save=lambda: self._payload)
        self._file.save(image)
        seconds = time.perf_counter() - started
        if (after := self._account()) != before:
            self._problem(f"save changed the account (ledger, kernel): {before} became {after}")
        info = pgalloc.inspect_image(image)
        self._report.saved_files, self._report.image_bytes = self._files, info.image_bytes
        what = f"an image of {format_bytes(info.image_bytes)}"
        self._step("save", what, seconds, self._files)

    def _restore(self, name: str, image: str, mode: str) -> None:
        self._progress.begin(name, self._nbytes)
        started = time.perf_counter()
        outcome = _restore_elsewhere(image, mode, self._report.threads)
        seconds = time.perf_counter() - started
        what = "new process"
        if outcome.first_file_s is not None:
            what += f", first file after {format_seconds(outcome.first_file_s)}"
        self._step(name, what, seconds, outcome.files)
        for problem in outcome.problems:
            self._problem(f"{name}: {problem}")
        if not outcome.problems and outcome.files != self._files:
            self._problem(f"{name}: only {outcome.files} of {self._files} files came back")
        self._report.digests_checked += outcome.files
        self._report.restores += 1

    def _account(self) -> tuple[int, int]:
        return sum(self._file.usage().values()), self._file.total_usage()

    def _step(self, name: str, what: str, seconds: float, files: int) -> None:
        self._progress.advance(self._nbytes)
        self._report.steps.append(Step(name, what, seconds, files, self._nbytes))

    def _problem(self, what: str) -> None:
        self._report.problems.append(what)


def _restore_elsewhere(image: str, mode: str, threads: int) -> Outcome:
    """Runs ``restore`` in a process of its own; an end without an outcome is a problem.

    It looks for modules where this process does, and nowhere else (-P).
    """
    command = [sys.executable, "-P", "-m", "pgalloc.cli.demo.restore", image, mode, str(threads)]
    modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": modules},
            timeout=RESTORE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome([f"the new process was not done after {RESTORE_S:.0f} s"])
    try:
        if done.returncode == 0:
            return Outcome.from_json(done.stdout.decode())
        reason = f"the new process ended with status {done.returncode}"
    except (ValueError, TypeError):
        reason = "the new process said nothing that can be understood"
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return Outcome([f"{reason}: {format_path(last)}" if last else reason])
