"""One half of ``pgalloc demo oom``: ``python -m pgalloc.cli.oom.child dict|cache WORK``.

Runs inside the memory group. Prints its progress as lines of JSON; the last one says "done" if it
did all of the work. Exit status 0 says the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pgalloc
from pgalloc.cli.oom.work import Progress, Work, Worker

KINDS = ("dict", "cache")


def main(kind: str, work_file: str) -> int:
    """Does the work with a cache of that kind; returns the exit status."""
    work = Work.load(Path(work_file))
    last = Progress()

    def report(progress: Progress) -> None:
        nonlocal last
        last = progress
        print(progress.to_json(), flush=True)

    if kind == "dict":
        Worker(work, {}, lambda: 0, report).run()
    else:
        # No limit of its own: what keeps it small enough is the limit of the group.
        cache = pgalloc.Cache(maxsize=work.nbytes)
        Worker(work, cache, lambda: cache.stats().discards, report).run()
    return 0 if last.done else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
