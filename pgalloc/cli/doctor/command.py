"""``pgalloc doctor``: what this machine offers, and whether what pgalloc needs works."""

from __future__ import annotations

import dataclasses
import json
import os
import platform

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import pgalloc
from pgalloc.cli.doctor.model import Diagnosis, examine
from pgalloc.cli.doctor.pressure import Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine offers and try it.

    Exit status 0 says: a memory file was opened, pages were committed, written, decommitted and
    freed, and the kernel had all of its memory back.
    """
    diagnosis = examine()
    if as_json:
        click.echo(json.dumps(_as_json(diagnosis), indent=2))
    else:
        _print(Console(), diagnosis)
    ctx.exit(0 if diagnosis.ok else 1)


def _print(console: Console, diagnosis: Diagnosis) -> None:
    console.print(f"pgalloc {pgalloc.__version__} doctor", markup=False, highlight=False)
    console.print(_table("This machine", diagnosis.machine))
    limits = diagnosis.limits
    console.print(_table("Memory limit and pressure", [*limits.limits, *limits.sources]))
    console.print(Text("At the limit", style="bold"))
    for sentences in limits.at_the_limit:
        console.print(Padding(Text(sentences), (0, 0, 0, 2)))
    console.print()
    console.print(_table("Kernel", diagnosis.kernel))
    for feature in diagnosis.features:
        if feature.advice:
            console.print(Text(f"What helps ({feature.name})", style="bold"))
            for line in feature.advice:
                console.print(Padding(Text(line), (0, 0, 0, 2)))
            console.print()
    console.print(Text("Tried just now", style="bold"))
    for step in diagnosis.trial:
        mark = ("  FAILED  " if step.error else "  ok  ", _style(not step.error))
        console.print(Text.assemble(mark, step.name))
        if step.error:
            console.print(Text(f"          {step.error}"))
    console.print()
    verdict = "OK: what pgalloc needs works here" if diagnosis.ok else "FAILED: see above"
    console.print(Text(f"doctor: {verdict}", style=_style(diagnosis.ok)), soft_wrap=True)


def _table(title: str, findings: list[Finding]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_header=False,
        padding=(0, 1),
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=36)
    table.add_column(style="dim", overflow="fold")
    for finding in findings:
        style = "" if finding.good else "yellow"
        table.add_row(finding.name, Text(finding.found, style=style), Text(finding.meaning))
    return table


def _style(good: bool) -> str:
    return "bold green" if good else "bold red"


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "ok": diagnosis.ok,
        "pgalloc": pgalloc.__version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "page_size": pgalloc.PAGE_SIZE,
        "pressure": dataclasses.asdict(diagnosis.limits.pressure),
        "guard": dataclasses.asdict(diagnosis.limits.guard),
        "sources": [dataclasses.asdict(attempt) for attempt in diagnosis.limits.attempts],
        "at_the_limit": " ".join(diagnosis.limits.at_the_limit),
        "features": {feature.name: dataclasses.asdict(feature) for feature in diagnosis.features},
        "findings": [
            dataclasses.asdict(finding)
            for finding in (
                *diagnosis.machine,
                *diagnosis.limits.limits,
                *diagnosis.limits.sources,
                *diagnosis.kernel,
            )
        ],
        "trial": [dataclasses.asdict(step) for step in diagnosis.trial],
    }
