"""The argument IMAGE of the commands that read one."""

from __future__ import annotations

import os
import stat

import click

from pgalloc.cli.units import format_path


def image_file(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A click callback: refuses what cannot be an image file before anything waits for it."""
    try:
        if not stat.S_ISREG(os.stat(value).st_mode):
            raise click.BadParameter(f"{format_path(value)}: not a regular file")
        os.close(os.open(value, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise click.BadParameter(f"{format_path(value)}: {error.strerror}") from error
    return value


def reason_of(error: BaseException) -> str:
    """Why an image cannot be read, on one line. It may quote the image, so it is escaped."""
    text = error.strerror if isinstance(error, OSError) else None
    return format_path(text or str(error) or type(error).__name__)
