"""``pgalloc top [PID|SOCKET]``: the live files of a process, and how far its limit is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import click
from rich.console import Console
from rich.live import Live

from pgalloc.cli.top.model import LookError, ProcessView, look_around, look_at
from pgalloc.cli.top.target import pid_of
from pgalloc.cli.top.terminal import render_views

_Look = Callable[[], list[ProcessView]]


@click.command()
@click.argument("target", required=False, metavar="[PID|SOCKET]")
@click.option("--once", is_flag=True, help="Look once and end; so too without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each look.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.pass_context
def top(ctx: click.Context, target: str | None, once: bool, as_json: bool, interval: float) -> None:
    """Watch the memory files of a process: usage, huge pages, size, cgroup limit, headroom.

    The process is given by its id or by a Unix socket it listens on; without either, all of this
    user's processes that have pgalloc files are shown. Ends when there is nothing to be seen any
    more. Exit status 1 says that there was nothing from the beginning.
    """
    try:
        look = _looker(target)
        views = look()
    except LookError as error:
        click.echo(f"pgalloc top: {error}", err=True)
        ctx.exit(1)
    console = Console()
    try:
        if as_json:
            _print_json(views)
            _repeat(look, interval, _print_json, once)
        elif once or not console.is_terminal:
            console.print(render_views(views))
        else:
            with Live(render_views(views), console=console, auto_refresh=False) as live:
                _repeat(look, interval, lambda seen: _show(live, seen), False)
    except LookError as error:
        click.echo(f"pgalloc top: {error}", err=True)
    except KeyboardInterrupt:
        pass  # the usual way to end it


def _looker(target: str | None) -> _Look:
    if target is not None:
        pid = pid_of(target)
        return lambda: [look_at(pid)]
    return _look_around


def _look_around() -> list[ProcessView]:
    views = look_around()
    if not views:
        raise LookError("no process of this user has pgalloc files open")
    return views


def _repeat(
    look: _Look, interval: float, show: Callable[[list[ProcessView]], None], once: bool
) -> None:
    """Shows one look after another, until look() raises: there is nothing to be seen any more."""
    while not once:
        time.sleep(interval)
        show(look())


def _show(live: Live, views: list[ProcessView]) -> None:
    live.update(render_views(views), refresh=True)


def _print_json(views: list[ProcessView]) -> None:
    processes = [{**asdict(view), "usage": view.usage, "huge": view.huge} for view in views]
    click.echo(json.dumps({"time": time.time(), "processes": processes}))
