"""``pgalloc demo [PATH]``: the main job on real input.

``demo oom`` and ``demo workers`` have packages of their own, ``oom`` and ``workers``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

import click
from rich.console import Console
from rich.text import Text

import pgalloc
from pgalloc.cli.demo.html_page import render_html
from pgalloc.cli.demo.model import Demo
from pgalloc.cli.demo.report import Report, Step
from pgalloc.cli.demo.terminal import render_report, render_verdict
from pgalloc.cli.files import find_files, where_to_look
from pgalloc.cli.oom.command import oom
from pgalloc.cli.params import size
from pgalloc.cli.progress_bar import BarProgress
from pgalloc.cli.units import format_bytes, format_count, format_path
from pgalloc.cli.workers.command import workers
from pgalloc.pressure import info

_OTHERS = {"oom": oom, "workers": workers}


class _Demo(click.Command):
    """The demo itself and, by their names, ``_OTHERS``; a folder of such a name is ``./oom``."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        if args and args[0] in _OTHERS:
            name, *rest = args
            return _OTHERS[name].make_context(f"{info_name} {name}", rest, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Demo, epilog="See also: pgalloc demo oom --help, pgalloc demo workers --help")
@click.argument("path", required=False, type=click.Path(), metavar="[PATH]")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=min(8, 2 * (os.cpu_count() or 1)),
    show_default=True,
    help="Threads that load and check.",
)
@click.option(
    "--limit",
    callback=size,
    metavar="SIZE",
    help="Load at most so many bytes, as 512M. Default: a third of what the memory limit leaves.",
)
@click.option("--html", type=click.Path(dir_okay=False), help="Also write the report as a page.")
@click.pass_context
def demo(
    ctx: click.Context, path: str | None, threads: int, limit: int | None, html: str | None
) -> None:
    """Load every file below PATH, check, evict, reload, save, restore and give it all back.

    PATH is a folder or a file; without it the interpreter's own standard library is used. Exit
    status 0 says: every SHA-256 digest of what was loaded matched the disk, also in two new
    processes that restored it from an image, and every account ended at zero, in the ledger and in
    the kernel.
    """
    path, without = where_to_look(path)
    limit = limit or max(pgalloc.PAGE_SIZE, info().headroom // 3)
    if html is not None:
        _check_writable(html)
    report = Report(path, threads, limit)
    console = Console()
    amounts = f"{format_count(threads, 'thread')}, at most {format_bytes(limit)}"
    console.print(Text(f"pgalloc {pgalloc.__version__} demo: {amounts}"))
    console.print(Text(format_path(path)), soft_wrap=True)
    try:
        _run(report, without)
    except (pgalloc.Error, OSError, MemoryError) as error:
        report.problems.append(f"{type(error).__name__}: {error}")
    render_report(console, report)
    if html is not None:
        _write(html, render_html(report), report)
        console.print(Text(f"page: {format_path(html)}"), soft_wrap=True)
    render_verdict(console, report)
    ctx.exit(0 if report.ok else 1)


def _run(report: Report, without: Collection[str]) -> None:
    started = time.perf_counter()
    try:
        found = find_files(
            report.path, limit=report.limit, page_size=pgalloc.PAGE_SIZE, without=without
        )
    except OSError as error:
        raise click.UsageError(
            f"cannot look at {format_path(report.path)}: {error.strerror}"
        ) from error
    seconds = time.perf_counter() - started
    report.steps.append(Step("find", "regular files", seconds, len(found.files), found.nbytes))
    policy = pgalloc.DelayedEviction.MANUAL
    with (
        BarProgress() as progress,
        pgalloc.MemoryFile(delayed_eviction=policy) as memory_file,
    ):
        Demo(memory_file, found, report, progress).run()
    left = pgalloc.memory_accounting().total()
    if left:
        report.problems.append(f"the process's account ended at {format_bytes(left)}")


def _check_writable(file: str) -> None:
    """Finds out before the run whether the page can be written after it."""
    folder = os.path.dirname(os.path.abspath(file))
    if not os.access(file if os.path.exists(file) else folder, os.W_OK):
        raise click.UsageError(f"cannot write {format_path(file)}")


def _write(file: str, page: str, report: Report) -> None:
    try:
        with open(file, "w", encoding="utf-8") as out:
            out.write(page)
    except OSError as error:
        report.problems.append(f"cannot write {format_path(file)}: {error.strerror}")
