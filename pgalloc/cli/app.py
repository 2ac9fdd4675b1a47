"""The group of commands. To add one, write ``<name>_command.py`` and list it here."""

from __future__ import annotations

import click

from pgalloc.cli.demo_command import demo
from pgalloc.cli.doctor_command import doctor
from pgalloc.cli.inspect_command import inspect
from pgalloc.cli.top_command import top
from pgalloc.cli.verify_command import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pgalloc")
def cli() -> None:
    """Off-heap page memory: counted, mapped, given back, accounted for."""


for command in (demo, doctor, inspect, top, verify):
    cli.add_command(command)
