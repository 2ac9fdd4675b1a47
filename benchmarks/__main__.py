"""``python -m benchmarks``: run the workloads, print one table. See README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import driver
from benchmarks.goals import BY_NAME
from benchmarks.judge import judge
from benchmarks.picture import picture
from benchmarks.runner import measure
from benchmarks.table import table

_WIDTH_OF_FILE = 170


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--workload", nargs="+", choices=tuple(BY_NAME), metavar="NAME", default=tuple(BY_NAME),
        help="only these: " + ", ".join(BY_NAME),
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are shown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON lines")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them as SVG")
    parser.add_argument("--driver", metavar="PATH", help="the core_driver; default: build it")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main() -> int:
    """Run it. The exit status."""
    options = _parsed()
    notes = Console(stderr=True)
    try:
        with notes.status("building the driver of the core"):
            driver_path = driver.find_or_build(options.driver)
    except driver.DriverError as error:
        notes.print(f"{error}\nThe figures of the core are left out.", style="yellow")
        driver_path = None
    names = [name for name in BY_NAME if name in options.workload]
    with notes.status("warming the machine") as status:
        results = measure(names, options.repeats, driver_path, status.update)
    lines = judge(results)
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILE).print(table(lines))
    if options.json is not None:
        options.json.write_text("".join(f"{result.json()}\n" for result in results))
    if options.picture is not None:
        options.picture.write_text(picture(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
