"""Which changes to csrc the tests notice. See README.md beside this file.

Draws mutants from every room of csrc, builds all of them into one copy of the project, finds out
which tests reach each of them, and runs these with one mutant chosen after the other. It can be
stopped at any time: the next run goes on. A mutant that no test notices survives; it needs a test,
or a reason in mutation/reasons.toml. Exits with 0 if enough are killed and every survivor has a
reason.
"""

from __future__ import annotations

import argparse
import sys

from mutation import named
from mutation.campaign import Campaign
from mutation.mutant import Mutant
from mutation.report import print_report, read_reasons
from mutation.tree import ROOT


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mutants", type=int, default=240, help="how many are drawn (240)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", help="draw only from this folder of csrc")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at the same time (2)")
    parser.add_argument("--seconds", type=float, default=300, help="of tests for each (300)")
    parser.add_argument("--killed", type=float, default=0.9, help="the share that must be (0.9)")
    parser.add_argument(
        "--named",
        action="store_true",
        help="only those of mutation/named.toml, with tests/native alone: half a minute",
    )
    parser.add_argument(
        "--native", action="store_true", help="with tests/native alone: minutes, not hours"
    )
    parser.add_argument("--only", default="", help="try only those with this in their names")
    options = parser.parse_args()
    kind = "_named" if options.named else "_native" if options.native else ""
    campaign = Campaign(ROOT / "build" / f"mutants{kind}", with_python=not kind)

    def chosen() -> list[Mutant]:
        drawn = [] if options.named else campaign.draw(options.mutants, options.seed, options.room)
        return [*named.mutants(), *drawn]

    campaign.prepare(chosen)
    reasons = read_reasons()
    try:
        campaign.run(jobs=options.jobs, seconds=options.seconds, only=options.only, last=reasons)
    except KeyboardInterrupt:
        print("stopped; the next run goes on")
    results = campaign.results()
    built = [results[each.name] for each in campaign.mutants.values() if each.name in results]
    share = 1.0 if options.named else options.killed
    return print_report(built, reasons, share=share)


if __name__ == "__main__":
    sys.exit(main())
