"""``pgalloc inspect IMAGE``: what an image holds, without reading a page of it."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

import pgalloc
from pgalloc.cli.images.params import image_file, name_of, reason_of, source_of
from pgalloc.cli.images.summary import as_json
from pgalloc.cli.images.tables import tables_of


@click.command()
@click.argument("image", type=click.Path(), callback=image_file, metavar="IMAGE")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def inspect(ctx: click.Context, image: str, as_json_: bool) -> None:
    """Show what an image holds: kinds, extents, what is stored of what is represented, hooks.

    Exit status 0 says: header, metadata, index and trailer are sound and fit each other. The pages
    are not read; `pgalloc verify` does that. IMAGE may be `-` for standard input, a pipe or a
    device: then all of it is read, and checked.
    """
    try:
        with source_of(image) as source:
            info = pgalloc.inspect_image(source)
    except (pgalloc.Error, OSError, MemoryError) as error:
        console = Console(stderr=True)
        dash = "-" if console.options.ascii_only else "—"
        verdict = f"inspect: FAILED {dash} {reason_of(error)}"
        console.print(Text(verdict, style="bold red"), soft_wrap=True)
        ctx.exit(1)
    if as_json_:
        click.echo(json.dumps(as_json(info), indent=2))
        return
    console = Console()
    console.print(Text(name_of(image)), soft_wrap=True)
    for table in tables_of(info):
        console.print(table)
