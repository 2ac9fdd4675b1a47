"""``pgalloc verify IMAGE``: whether every byte of an image is as it was written."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

import pgalloc
from pgalloc.cli.images.params import image_file, reason_of, source_of
from pgalloc.cli.images.summary import totals_of
from pgalloc.cli.progress_bar import BarProgress
from pgalloc.cli.units import format_bytes, format_count


@click.command()
@click.argument("image", type=click.Path(), callback=image_file, metavar="IMAGE")
@click.pass_context
def verify(ctx: click.Context, image: str) -> None:
    """Read all of an image and check everything that can be checked.

    Exit status 0 says: every checksum is right, the parts fit each other, and what is compressed
    can be decompressed to what it stands for. IMAGE may be `-` for standard input, a pipe or a
    device.
    """
    try:
        with BarProgress() as bar, source_of(image) as source:
            info = pgalloc.verify_image(source, progress=_Steps(bar))
    except (pgalloc.Error, OSError, MemoryError) as error:
        _print_verdict(False, reason_of(error))
        ctx.exit(1)
    totals = totals_of(info)
    extents = format_count(len(info.extents), "extent")
    _print_verdict(
        True,
        f"{extents}, {format_bytes(totals.stored_bytes)} stored "
        f"for {format_bytes(totals.represented_bytes)} represented: every checksum matched",
    )


class _Steps:
    """What ``verify_image`` calls: done and total bytes, as steps of the bar."""

    def __init__(self, bar: BarProgress) -> None:
        self._bar = bar
        self._done = self._total = 0

    def __call__(self, done: int, total: int) -> None:
        if total != self._total:
            self._bar.begin("verify", total)
            self._done, self._total = 0, total
        self._bar.advance(done - self._done)
        self._done = done


def _print_verdict(good: bool, text: str) -> None:
    console = Console()
    dash = "-" if console.options.ascii_only else "—"
    word, style = ("OK", "bold green") if good else ("FAILED", "bold red")
    console.print(Text(f"verify: {word} {dash} {text}", style=style), soft_wrap=True)
