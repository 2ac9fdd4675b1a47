"""The argument IMAGE of the commands that read one: a path, or ``-`` for standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import pgalloc
from pgalloc.cli.units import format_path

_STANDARD_INPUT = "-"


def image_file(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A click callback: refuses what cannot be an image before anything waits for it."""
    if value == _STANDARD_INPUT:
        return value
    try:
        mode = os.stat(value).st_mode
        if stat.S_ISDIR(mode):
            raise click.BadParameter(f"{format_path(value)}: is a directory")
        if stat.S_ISREG(mode):  # what else there is, is opened once: its writer may wait for that
            os.close(os.open(value, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise click.BadParameter(f"{format_path(value)}: {error.strerror}") from error
    return value


@contextmanager
def source_of(image: str) -> Iterator[Any]:
    """What the library is to read. Raises SnapshotCorruptError if bytes follow after the image."""
    if image != _STANDARD_INPUT and stat.S_ISREG(os.stat(image).st_mode):
        yield image  # the library looks at the whole file
        return
    if image != _STANDARD_INPUT:
        file: Any = open(image, "rb", buffering=0)  # noqa: SIM115
    elif sys.stdin is None:
        raise OSError("there is no standard input")
    else:
        file = sys.stdin.buffer
    try:
        yield file
        if file.read(1):
            raise pgalloc.SnapshotCorruptError("bytes follow after the image")
    finally:
        if image != _STANDARD_INPUT:
            file.close()


def name_of(image: str) -> str:
    """The argument as it is shown."""
    return "standard input" if image == _STANDARD_INPUT else format_path(image)


def reason_of(error: BaseException) -> str:
    """Why an image cannot be read, on one line. It may quote the image, so it is escaped."""
    text = error.strerror if isinstance(error, OSError) else None
    return format_path(text or str(error) or type(error).__name__)
