"""An image's summary as tables: 80 columns are enough. Text from the image is escaped."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import pgalloc
from pgalloc.cli.images.summary import encodings_of, kinds_of, largest_extents, totals_of
from pgalloc.cli.units import format_bytes, format_count, format_offset, format_path

_EXTENTS_SHOWN = 8
_HOOKS_SHOWN = 16
_MEMCGS_SHOWN = 2


def tables_of(info: pgalloc.ImageInfo) -> Iterable[RenderableType]:
    """What there is to see, the most important first; parts that are empty are left out."""
    yield _facts(info)
    if info.segments:
        yield _kinds(info)
    if info.extents:
        yield _encodings(info)
        yield _extents(info)
    if info.hooks:
        yield _hooks(info)


def _table(title: str, *columns: str, text_columns: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for number, column in enumerate(columns):
        left = number < text_columns
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def _facts(info: pgalloc.ImageInfo) -> RenderableType:
    totals = totals_of(info)
    skipped = f"{info.zero_pages_skipped:,}, {format_bytes(totals.zero_bytes_skipped)}"
    facts = {
        "format version": str(info.version),
        "page size": format_bytes(info.page_size),
        "image size": format_bytes(info.image_bytes),
        "file size": format_bytes(info.file_size),
        "restore_id": format_path(info.restore_id) or "none",
        "bytes stored": format_bytes(totals.stored_bytes),
        "bytes represented": format_bytes(totals.represented_bytes),
        "zero pages skipped": skipped if info.zero_pages_skipped else "none",
        "hooks": f"{len(info.hooks):,}" if info.hooks else "none",
    }
    table = Table(title="Image", title_justify="left", title_style="bold", box=box.SIMPLE)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, found in facts.items():
        table.add_row(name, Text(found))
    return table


def _kinds(info: pgalloc.ImageInfo) -> RenderableType:
    table = _table(
        "Usage set", "kind", "segments", "represented", "known committed", "references", "memcgs"
    )
    for kind in kinds_of(info):
        refs = [f"{refs:,}" for refs in sorted({kind.refs_least, kind.refs_most})]
        table.add_row(
            kind.kind,
            f"{kind.segments:,}",
            format_bytes(kind.represented_bytes),
            format_bytes(kind.committed_bytes),
            " to ".join(refs),
            _memcgs(kind.memcg_ids),
        )
    return table


def _memcgs(ids: list[int]) -> str:
    if len(ids) > _MEMCGS_SHOWN:
        return f"{len(ids):,} of them"
    return ", ".join(map(str, ids)) or "none"


def _encodings(info: pgalloc.ImageInfo) -> RenderableType:
    table = _table("Stored pages", "encoding", "extents", "pages", "in memory", "stored")
    for encoding in encodings_of(info):
        table.add_row(
            format_path(encoding.encoding),
            f"{encoding.extents:,}",
            f"{encoding.stored_pages:,}",
            format_bytes(encoding.page_bytes),
            format_bytes(encoding.stored_bytes),
        )
    return table


def _extents(info: pgalloc.ImageInfo) -> RenderableType:
    chosen = largest_extents(info, _EXTENTS_SHOWN)
    left = len(info.extents) - len(chosen)
    title = "Extents"
    if left:
        title = f"The {len(chosen)} largest extents; {left:,} more"
    table = _table(
        title, "encoding", "in the file", "stands for", "pages", "stored", "in the image"
    )
    for extent in chosen:
        table.add_row(
            format_path(extent.encoding),
            format_offset(extent.start),
            format_bytes(extent.end - extent.start),
            f"{extent.stored_pages:,}",
            format_bytes(extent.stored_bytes),
            format_offset(extent.offset),
        )
    return table


def _hooks(info: pgalloc.ImageInfo) -> RenderableType:
    left = len(info.hooks) - _HOOKS_SHOWN
    table = _table(f"The first {_HOOKS_SHOWN} hooks" if left > 0 else "Hooks", "name", "payload")
    for name, nbytes in list(info.hooks.items())[:_HOOKS_SHOWN]:
        table.add_row(Text(format_path(name)), format_bytes(nbytes))
    if left > 0:
        nbytes = sum(list(info.hooks.values())[_HOOKS_SHOWN:])
        table.add_row(Text(f"and {format_count(left, 'hook')} more"), format_bytes(nbytes))
    return table
