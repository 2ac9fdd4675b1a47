"""Conversions of command-line values."""

from __future__ import annotations

import click

from pgalloc.sizes import parse_size


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A click callback: ``512M`` becomes bytes, more than 0; absent stays absent."""
    if value is None:
        return None
    try:
        nbytes = parse_size(value, "the size")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if nbytes <= 0:
        raise click.BadParameter("must be more than 0")
    return nbytes
