"""``pgalloc demo workers [PATH]``: the same data for several processes, in three ways."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

import pgalloc
from pgalloc.cli.files import where_to_look
from pgalloc.cli.params import size
from pgalloc.cli.units import format_bytes, format_count, format_path
from pgalloc.cli.workers.crew import Crew, RunningCrew, State
from pgalloc.cli.workers.data import DataSet, find_data
from pgalloc.cli.workers.procfs import SHM
from pgalloc.cli.workers.terminal import Screen
from pgalloc.cli.workers.verdict import judge, verdict
from pgalloc.cli.workers.ways import WAYS
from pgalloc.pressure import info

_LIMIT_MAX = 256 << 20  # so that it takes seconds
# Besides the workers' own copies of a list of bytes: the owner's, what it is pickled into, and the
# copies that the other two ways need.
_OTHER_COPIES = 5


@click.command()
@click.argument("path", required=False, type=click.Path(), metavar="[PATH]")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Processes that the data is handed to.",
)
@click.option(
    "--limit",
    callback=size,
    metavar="SIZE",
    help="Load at most so many bytes, as 512M. Default: 256M, or what lets all copies together "
    "stay within a third of what the memory limit leaves, and within /dev/shm.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="For each way.",
)
@click.pass_context
def workers(
    ctx: click.Context, path: str | None, workers: int, limit: int | None, timeout: float
) -> None:
    """Hand the files below PATH to worker processes in three ways, then kill all of them.

    PATH is a folder or a file; without it the interpreter's own standard library is used. The ways:
    a list of bytes as an argument of Process, a segment of multiprocessing.shared_memory, and a
    pgalloc.SharedList. Memory is what the kernel calls proportional: a page that N processes map
    counts one Nth in each; without pages of files on disk. When all has been measured, owners and
    workers are killed with SIGKILL, and what each way left behind is counted.

    Exit status 0 says: every worker found the right SHA-256 digest of every file in all three ways;
    with pgalloc, owner and workers together had no more memory for the data than 1.1 times one copy
    of it, and 1 MiB for each process, compared to processes that were handed nothing; and pgalloc
    left neither processes nor names nor memory behind.
    """
    data = _find_data(path, limit or _default_limit(workers))
    console = Console()
    amount = f"{format_count(len(data.files), 'file')}, {format_bytes(data.nbytes)}"
    told = f"{amount}, for {format_count(workers, 'worker')}"
    console.print(Text(f"pgalloc {pgalloc.__version__} demo workers: {told}"), soft_wrap=True)
    crews = [Crew(way, workers) for way in WAYS]
    if data.nbytes:
        _run(console, crews, data, timeout)
    for crew in crews:
        if crew.errors and crew.state is not State.KILLED:
            console.print(Text(f"{crew.way}:\n{crew.errors}", style="dim"), soft_wrap=True)
    problems = judge(crews, data)
    text = verdict(crews, data, problems, "-" if console.options.ascii_only else "—")
    console.print(Text(text, style="bold red" if problems else "bold green"), soft_wrap=True)
    ctx.exit(1 if problems else 0)


def _default_limit(workers: int) -> int:
    within_memory = info().headroom // 3 // (workers + _OTHER_COPIES)
    within_shm = _LIMIT_MAX
    with contextlib.suppress(OSError):
        shm = os.statvfs(SHM)
        within_shm = shm.f_bavail * shm.f_frsize * 9 // 10
    return max(pgalloc.PAGE_SIZE, min(_LIMIT_MAX, within_memory, within_shm))


def _find_data(path: str | None, limit: int) -> DataSet:
    path, without = where_to_look(path)
    try:
        return find_data(path, limit=limit, without=without)
    except OSError as error:
        raise click.UsageError(f"cannot look at {format_path(path)}: {error.strerror}") from error


def _run(console: Console, crews: list[Crew], data: DataSet, timeout: float) -> None:
    """Measures one crew after another, kills all, looks at what is left, and cleans up."""
    # Chosen here, so that it can be removed after its owner was killed.
    name = f"pgalloc-demo-{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, console, SHM / name)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgalloc-demo-"))
        data_file = Path(folder, "data")
        data.save(data_file)
        screen = stack.enter_context(Screen(console, crews, data.nbytes))
        running = []
        for crew in crews:
            running.append(RunningCrew(crew, data_file, name))
            stack.callback(running[-1].close)
            running[-1].follow(timeout, screen.update)
        for processes in running:
            processes.kill()
        for processes in running:
            processes.look()
        screen.update()


def _remove(console: Console, segment: Path) -> None:
    """Removes the segment that shared_memory left behind, and says so."""
    try:
        nbytes = segment.stat().st_size
        segment.unlink()
    except FileNotFoundError:
        return
    told = f"Removed {segment}, {format_bytes(nbytes)}, which shared_memory left behind."
    console.print(Text(told), soft_wrap=True)
