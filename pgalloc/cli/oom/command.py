"""``pgalloc demo oom [PATH]``: a dict and a Cache under the same memory limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click
from rich.console import Console
from rich.text import Text

import pgalloc
from pgalloc._processes.memory_group import MemoryGroup, NoPlaceError, Place, open_place
from pgalloc.cli.files import where_to_look
from pgalloc.cli.oom.borrowed_group import BorrowedGroup, borrow_group
from pgalloc.cli.oom.child import KINDS
from pgalloc.cli.oom.half import Half, State, run_half
from pgalloc.cli.oom.terminal import Screen
from pgalloc.cli.oom.work import Work, WorkError, find_work
from pgalloc.cli.params import size
from pgalloc.cli.units import format_bytes, format_count, format_path

_DEFAULT_LIMIT = "256M"
_LIMIT_MIN = 64 << 20
# A larger group that was not made for the demo is not used: filling it would take too long.
_BORROWED_LIMIT_MAX = 1 << 30
# At least so many values fit into the limit: a single one must not decide what happens.
_VALUES_IN_LIMIT_MIN = 8

_HOW = """\
A memory cgroup cannot be made here: {made}.
This process's own cannot be used: {borrowed}.
Run it where either is different:

  docker run --rm -m 256m IMAGE pgalloc demo oom      (an image that has pgalloc)
  systemd-run --user --scope -p Delegate=yes -p MemoryMax=256M pgalloc demo oom
  sudo pgalloc demo oom
"""


@click.command()
@click.argument("path", required=False, type=click.Path(), metavar="[PATH]")
@click.option(
    "--limit",
    callback=size,
    default=_DEFAULT_LIMIT,
    show_default=True,
    metavar="SIZE",
    help="The memory limit that both have to live with.",
)
@click.option(
    "--times",
    type=click.FloatRange(min=2),
    default=4,
    show_default=True,
    help="How many times the limit the values are together.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="For each half.",
)
@click.pass_context
def oom(ctx: click.Context, path: str | None, limit: int, times: float, timeout: float) -> None:
    """Fill a plain dict, then a pgalloc Cache, with the files below PATH, under a memory limit.

    PATH is a folder or a file; without it the interpreter's own standard library is used. Each half
    runs in a process of its own, in a memory cgroup made for it. Exit status 0 says: the kernel
    killed the dict for want of memory, by the kernel's own count; the Cache finished, and every
    value in it had the right SHA-256 digest. Status 2 says that it could not be tried.
    """
    if limit < _LIMIT_MIN:
        raise click.BadParameter(f"must be at least {format_bytes(_LIMIT_MIN)}", param_hint="limit")
    console = Console()
    try:
        with _groups(limit) as groups:
            work = _find_work(path, groups.limit, times)
            halves = _run(console, groups, work, timeout)
    except NoPlaceError as error:
        click.echo(str(error), err=True)
        ctx.exit(2)
    problems = judge(halves)
    for problem in problems:
        console.print(Text(problem), soft_wrap=True)
    verdict = "OK: the dict was killed, the Cache finished" if not problems else "FAILED: see above"
    style = "bold red" if problems else "bold green"
    console.print(Text(f"demo oom: {verdict}", style=style), soft_wrap=True)
    ctx.exit(1 if problems else 0)


class _Groups:
    """Where the halves run: groups made below a place, or the one that is here already."""

    def __init__(self, limit: int, place: Place | None, borrowed: BorrowedGroup | None) -> None:
        self.limit = limit
        self._place = place
        self.borrowed = borrowed

    @contextlib.contextmanager
    def group_for(self, half: Half) -> Iterator[MemoryGroup]:
        """One for each half, so that the kernel counts each half by itself."""
        if self._place is None:
            yield borrow_group(self.limit)
        else:
            with self._place.make(f"pgalloc-demo-{half.kind}", self.limit) as group:
                yield group


@contextlib.contextmanager
def _groups(limit: int) -> Iterator[_Groups]:
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(open_place())
        except NoPlaceError as made:
            try:
                borrowed = borrow_group(_BORROWED_LIMIT_MAX)
            except NoPlaceError as error:
                raise NoPlaceError(_HOW.format(made=made, borrowed=error)) from None
            yield _Groups(borrowed.limit, None, borrowed)
        else:
            yield _Groups(limit, place, None)


def _find_work(path: str | None, limit: int, times: float) -> Work:
    path, without = where_to_look(path)
    try:
        return find_work(
            path,
            nbytes=int(limit * times),
            size_max=limit // _VALUES_IN_LIMIT_MIN,
            without=without,
        )
    except OSError as error:
        raise click.UsageError(f"cannot look at {format_path(path)}: {error.strerror}") from error
    except WorkError as error:
        raise click.UsageError(str(error)) from error


def _run(console: Console, groups: _Groups, work: Work, timeout: float) -> list[Half]:
    limit = format_bytes(groups.limit)
    where = f"a memory cgroup of {limit} each"
    if groups.borrowed is not None:
        where = f"the memory cgroup that is here, {limit} and this process in it"
    files, values = format_count(len(work.files), "file"), format_count(work.values, "value")
    console.print(
        Text(f"pgalloc {pgalloc.__version__} demo oom: {files} make {values} of "),
        Text(f"{format_bytes(work.nbytes)} together; in {where}"),
        sep="",
        soft_wrap=True,
    )
    halves = [Half(kind) for kind in KINDS]
    with Screen(console, halves, groups.limit) as screen:
        for half in halves:
            with groups.group_for(half) as group:
                run_half(half, work, group, timeout_s=timeout, changed=screen.update)
    return halves


def judge(halves: list[Half]) -> list[str]:
    """Everything that is not as promised, in words; empty means success."""
    problems = []
    for half, expected in zip(halves, (State.KILLED, State.FINISHED), strict=True):
        if half.state is not expected:
            problems.append(
                f"the {half.kind} half: {half.state.value}, not: {expected.value} "
                f"({format_count(half.oom_kills, 'kill')} counted by the kernel, "
                f"{format_count(half.progress.wrong, 'wrong digest')})"
            )
            if half.errors:
                problems.append(half.errors)
    return problems
