"""The torture of sharing: one owner, many peers, and sudden deaths. See README.md beside this file.

Peers allocate, mark, check, share, unpin, fork, and pass pages on to each other, while the owner
kills one after the other and replaces them. Between rounds all are quiet, and every page is
accounted for. At the end nothing may be left. Exits with 0 if all is well, with 1 if something was
found, which is what ``--plant`` is for.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
import traceback
from typing import Any

from sharing_api import leftovers
from sharing_api.crew import METHODS, Crew
from sharing_api.leftovers import Leftovers
from sharing_api.owner import Owner
from sharing_api.plants import PLANTS, plant

import pgalloc
from pgalloc import _core
from pgalloc.pressure import default_guard
from pgalloc.pressure.guard import GuardSource
from pgalloc.testing import ManualPressure


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--operations", type=int, default=1 << 60, help="of all peers together")
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes-max", type=int, default=128 << 20)
    parser.add_argument("--kill-every", type=float, default=0.5, metavar="SECONDS", help="a mean")
    parser.add_argument(
        "--start-method", choices=METHODS, help="default: fork and spawn, at random"
    )
    parser.add_argument(
        "--trouble", type=float, default=0, metavar="RATE", help="the share of calls in trouble"
    )
    parser.add_argument("--plant", choices=PLANTS, help="a bug that must be found")
    return parser.parse_args()


def warm_up(methods: list[str]) -> None:
    """Start what stays, and is no leftover: the guard, the broker, what multiprocessing needs."""
    default_guard.ensure()
    _core.broker_address()
    GuardSource().close()
    for method in methods:
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=os.getpid)
        process.start()
        process.join()
        process.close()


def torture(options: argparse.Namespace, methods: list[str]) -> None:
    """The whole run."""
    with pgalloc.MemoryFile(capacity=16 << 30) as file, ManualPressure() as pressure:
        crew = Crew(
            file,
            options.seed,
            methods,
            peers=options.peers,
            bytes_max=options.bytes_max // options.peers,
            trouble=options.trouble,
        )
        owner = Owner(file, crew, pressure, options.seed, options.kill_every, options.trouble)
        try:
            owner.start(options.peers)
            end = time.monotonic() + options.seconds
            # time: how long the run is
            while time.monotonic() < end and owner.counts["operations"] < options.operations:
                owner.round()
            owner.finish()
        except BaseException:
            crew.kill_all()
            raise
    report(owner, crew)


def report(owner: Owner, crew: Crew) -> None:
    """Print what was done."""
    print("ok: no page shared, lost or dirty; everything came back from the dead")
    for what, count in {**owner.counts, "peers": crew.started}.items():
        print(f"  {what:<28} {count:>12}")
    delays_ms = sorted(1e3 * delay for delay in crew.delays_s)
    if delays_ms:
        print(f"  deaths of peers that held something: {len(delays_ms)}")
        print("  milliseconds until the owner had everything back:")
        for share in (0.5, 0.9, 0.99, 1.0):
            at = min(int(share * len(delays_ms)), len(delays_ms) - 1)
            print(f"    {share:>6.0%} {delays_ms[at]:>10.2f}")


def main() -> int:
    """Run it. The exit status."""
    options = parsed()
    logging.getLogger("pgalloc").setLevel(logging.CRITICAL)  # peers die on purpose
    methods = [options.start_method] if options.start_method else ["fork", "spawn"]
    try:
        warm_up(methods)
        before = Leftovers.now()
        if options.plant:
            plant(options.plant)
        torture(options, methods)
        leftovers.expect(before)
    except BaseException as error:
        traceback.print_exception(error)
        print(f"FAILED: {error}", flush=True)
        os._exit(1)  # what is broken must not get in the way of saying so
    if options.plant:
        print("the planted bug was not found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
