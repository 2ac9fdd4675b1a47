"""Goes for the memory limit, again and again, and counts who was killed. See README.md.

    python stress/limits.py write_through --runs 50
    python stress/limits.py touch --read-mib 200
    python stress/limits.py lowered --runs 30
    python stress/limits.py peer
    python stress/limits.py kept
    python stress/vm_v2.py --memory-max none -- python stress/limits.py touch

Each run is a fresh process in a fresh group with a limit, made under whatever memory controller is
here, v1 or v2. Exit status 0 only if no run was killed, none failed, and none stayed near the limit
for longer than a moment. With ``--plant`` something that protects is switched off, and the status
is 0 only if the kernel killed every run (of ``kept``: if every run failed).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from limit import write_through
from limit.reader import big_file
from limit.trial import Outcome, Setting, run

from pgalloc import MemoryFile
from pgalloc._processes.memory_group import NoPlaceError, Place, open_place

_MIB = 1 << 20
# How many times the limit a program goes through.
_TIMES = {"write_through": 16, "touch": 8, "lowered": 8, "peer": 4, "kept": 0}
_PLANTS = dict.fromkeys(_TIMES, ("guard",)) | {
    "write_through": write_through.PLANTS,
    "kept": ("headroom",),
}
# The limit is lowered to --limit-mib from so much, once so much is in use.
_LOWERED_FROM = 8192 * _MIB
_LOWERED_AT = 180 * _MIB
_KEPT = 150 * _MIB  # beside a file of so many MiB
_KEPT_READ_MIB = 200
_LOWERED_SIZES = [4096 << shift for shift in range(9)]  # of values: 4 KiB to 1 MiB
_TRIES = 20  # of a run that does not count


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", choices=_TIMES)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--limit-mib", type=int, default=256)
    parser.add_argument("--times", type=int, help="go through so many times the limit")
    parser.add_argument("--margin-mib", type=int, default=8, help="so close to the limit is near")
    parser.add_argument("--moment", type=float, default=0.1, help="seconds that near may last")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--read-mib", type=int, default=0, help="read such a file beside it")
    parser.add_argument("--read-file", default="", help="or this one")
    parser.add_argument("--plant", help="guard; dict (write_through), headroom (kept)")
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    parser.epilog = "What follows -- is for the program itself."
    own, theirs = _split(sys.argv[1:])
    options = parser.parse_args(own, argparse.Namespace(options=theirs))
    if options.plant and options.plant not in _PLANTS[options.program]:
        parser.error(f"{options.program} has these plants: {', '.join(_PLANTS[options.program])}")
    return options


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is before and what is behind the first "--"."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def main() -> int:
    options = arguments()
    try:
        with open_place() as place, _serving() as options.served, _file(options) as path:
            options.read_file = path
            outcomes = [_one(place, options, number) for number in range(options.runs)]
    except NoPlaceError as error:
        print(f"limits: cannot make a memory cgroup: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps([outcome.as_dict() for outcome in outcomes]))
    return _judge(options, outcomes)


@contextmanager
def _serving() -> Iterator[str]:
    """A file for peers, which this process owns: it has no limit. Its socket."""
    with ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory()) + "/socket"
        stack.enter_context(stack.enter_context(MemoryFile()).serve(path))
        yield path


@contextmanager
def _file(options: argparse.Namespace) -> Iterator[str]:
    """The file that is read, if there is to be one."""
    mib = options.read_mib or (_KEPT_READ_MIB if options.program == "kept" else 0)
    if options.read_file or not mib:
        yield options.read_file
        return
    with big_file(mib) as path:
        yield path


def _one(place: Place, options: argparse.Namespace, number: int) -> Outcome:
    limit = options.limit_mib * _MIB
    nbytes = limit * (options.times or _TIMES[options.program]) or _KEPT
    command = ["--nbytes", str(nbytes), "--seed", str(options.seed + number)]
    if options.plant:
        value = [options.plant] if options.program == "write_through" else []
        command += ["--plant", *value]
    setting = Setting(limit, options.margin_mib * _MIB, read=options.read_file)
    if options.program == "peer":
        command += ["--served", options.served]
    if options.program == "kept":
        command += ["--read", options.read_file]
        setting = replace(setting, read="")
    if options.program == "lowered":
        command += ["--size", str(_LOWERED_SIZES[number % len(_LOWERED_SIZES)])]
        setting = replace(setting, lower_from=_LOWERED_FROM, lower_at=_LOWERED_AT)
    for _ in range(_TRIES):
        outcome = run(place, options.program, [*command, *options.options], setting)
        if outcome.lowered:
            break
        print("the limit was not lowered: this run does not count", flush=True)
    else:
        raise SystemExit("limits: the limit could not be lowered in time")
    print(f"{options.program} {place.version} run {number + 1}: {outcome.summary()}", flush=True)
    if options.runs == 1 and outcome.said:
        print(json.dumps(outcome.said, indent=1))
    if outcome.status and not outcome.killed:
        print(outcome.errors, file=sys.stderr, flush=True)
    return outcome


def _judge(options: argparse.Namespace, outcomes: list[Outcome]) -> int:
    killed = sum(outcome.killed for outcome in outcomes)
    failed = sum(outcome.status != 0 and not outcome.killed for outcome in outcomes)
    stretch = max(outcome.closeness.near_longest_s for outcome in outcomes)
    print(
        f"limits: {options.program}: {len(outcomes)} runs, {killed} killed, {failed} failed, "
        f"longest stretch near the limit {stretch * 1e3:.0f} ms"
    )
    if options.plant:
        found = (failed if options.program == "kept" else killed) == len(outcomes)
        print(f"planted {options.plant}: {'found, as it must be' if found else 'NOT found'}")
        return 0 if found else 1
    # Page cache fills a group to its limit, and goes when it has to.
    too_near = stretch > options.moment and not options.read_file
    return 0 if not killed and not failed and not too_near else 1


if __name__ == "__main__":
    sys.exit(main())
