"""The owner of one way: ``python -m pgalloc.cli.workers.owner WAY DATA WORKERS NAME``.

Reads the files, starts the workers, and holds on until its standard input ends. That is when the
command ends, also if it is killed. The workers print what they found to the same standard output.
Exit status 1 says that a worker ended before that.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

from pgalloc.cli.workers.check import check
from pgalloc.cli.workers.data import DataSet
from pgalloc.cli.workers.ways import WAYS


def main(way: str, data_file: str, workers: str, name: str) -> int:
    """Hands the data over ``way``, and waits; returns the exit status."""
    data = DataSet.load(Path(data_file))
    context = multiprocessing.get_context("spawn")
    with WAYS[way](data, name) as parcel:
        arguments = (parcel, data.digests, time.monotonic())
        started = [
            context.Process(target=check, args=arguments, daemon=True) for _ in range(int(workers))
        ]
        for worker in started:
            worker.start()
        ended = wait([sys.stdin.fileno(), *(worker.sentinel for worker in started)])
    return 0 if sys.stdin.fileno() in ended else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
