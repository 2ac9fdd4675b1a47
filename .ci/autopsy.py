"""What is known of a job that failed, and of one that hangs.

Invariants:
1. Looking never fails: what cannot be read or run is said in a line.
2. It is bounded: each tool has its own time-out, all of them have one together, and what a process
   says is cut.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import processes
from processes import Process

_TELLING = re.compile(
    r"@reproduce_failure|Falsifying example|(?i:\bseed)|Fatal Python error"
    r"|ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:"
)
_CONTEXT = 2
_KNOWN_MAX = 60
_FILES_MAX = 10
_TOOL_S = 20
_ALL_S = 90
_TOOL_LINES = 150
_THREADS_MAX = 64
_FRAMES = 4
_GDB = ["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set pagination off"]
_GDB += ["-ex", "thread apply all bt 20"]


# --- A job that failed ---------------------------------------------------------------------------


def lines_of(file: Path) -> list[str]:
    """The lines of a log, whatever bytes are in it."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"({error})"]


def what_it_knows(log: Path, folder: Path) -> Iterator[str]:
    """Lines of the log and of all files in the folder that tell how to see it again; their ends."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    files.sort(key=lambda file: file.stat().st_mtime)
    known = list(_telling([log, *files]))
    yield f"what it knows: {len(known)} lines of seeds, examples and reports"
    yield from known[:_KNOWN_MAX]
    if len(files) > _FILES_MAX:
        yield f"({len(files)} logs of its own; these are the latest)"
    for file in files[-_FILES_MAX:]:
        yield f"--- the end of {file.relative_to(folder)}"
        yield from lines_of(file)[-40:]


def _telling(files: list[Path]) -> Iterator[str]:
    said = set()
    for file in files:
        lines = lines_of(file)
        near = {
            at
            for number, line in enumerate(lines)
            if _TELLING.search(line)
            for at in range(number - _CONTEXT, number + _CONTEXT + 1)
        }
        for number in sorted(near & set(range(len(lines)))):
            if (line := lines[number].strip()) and line not in said:
                said.add(line)
                yield f"{file.name}:{number + 1}: {lines[number]}"


# --- A job that hangs ----------------------------------------------------------------------------


def stacks(leader: int, folder: Path, work: Path) -> Iterator[str]:
    """Every process of a job: its threads as the kernel sees them, Python's stacks, native ones."""
    py_spy, gdb = _find("py-spy", work), _find("gdb", work)
    found = processes.of_job(leader, folder)
    yield f"it hangs; {len(found)} processes"
    for process in found:
        yield f"--- {process}"
        yield from _threads(process.pid)
    deadline = time.monotonic() + _ALL_S
    for process in found:
        if py_spy and _is_python(process):
            yield from _ask([py_spy, "dump", "--pid", str(process.pid)], process, deadline)
        if gdb:
            yield from _ask([gdb, *_GDB, "-p", str(process.pid)], process, deadline)


def _threads(pid: int) -> Iterator[str]:
    try:
        threads = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    except OSError as error:
        yield f"  ({error})"
        return
    for task in threads[:_THREADS_MAX]:
        state = re.search(r"^State:\s*(\S)", _text(task / "status"), re.MULTILINE)
        frames = re.findall(r"^\[<.*?>\] (\w+)", _text(task / "stack"), re.MULTILINE)
        yield (
            f"  thread {task.name} {_text(task / 'comm').strip()!r}, "
            f"state {state.group(1) if state else '?'}, waits in {_text(task / 'wchan') or '?'}"
            f"{': ' if frames else ''}{' < '.join(frames[:_FRAMES])}"
        )
    if len(threads) > _THREADS_MAX:
        yield f"  and {len(threads) - _THREADS_MAX} more threads"


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _is_python(process: Process) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{process.pid}/exe")).startswith("python")
    except OSError:
        return False


def _find(tool: str, work: Path) -> str | None:
    """On the path, or where jobs have their tools."""
    folders = [os.environ.get("PATH", os.defpath), ".venv/bin", str(work / "tools" / "bin")]
    return shutil.which(tool, path=os.pathsep.join(folders))


def _ask(command: list[str], process: Process, deadline: float) -> Iterator[str]:
    name = os.path.basename(command[0])
    patience_s = min(_TOOL_S, deadline - time.monotonic())
    yield f"--- {name} of {process.pid} ({process.name})"
    if patience_s <= 0:
        yield "(no time is left for it)"
        return
    lines = []
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience_s,
        )
        lines = done.stdout.decode(errors="replace").splitlines()
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").decode(errors="replace").splitlines()
        lines.append(f"({name} did not end)")
    except OSError as error:
        lines.append(f"({error})")
    yield from lines[:_TOOL_LINES]
    if len(lines) > _TOOL_LINES:
        yield f"({len(lines) - _TOOL_LINES} more lines)"
