"""The group of commands. To add one, write a package with a module ``command`` and list it here."""

from __future__ import annotations

import click

from pgalloc.cli.demo.command import demo
from pgalloc.cli.doctor.command import doctor
from pgalloc.cli.images.inspect_command import inspect
from pgalloc.cli.images.verify_command import verify
from pgalloc.cli.top.command import top


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pgalloc")
def cli() -> None:
    """Off-heap page memory: counted, mapped, given back, accounted for."""


for command in (demo, doctor, inspect, top, verify):
    cli.add_command(command)
