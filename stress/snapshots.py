"""The torture of snapshots. See README.md beside this file.

Round after round, a file of stamped pages is saved while others use it, and restored: at once,
forward from a stream, or in the background while many threads map, adopt, free and decommit its
pages, while it is closed, forked and saved again, and with a damaged image. Nothing may be lost,
mixed up, booked wrongly or left behind, and no thread may hang. Exits with 0 if all is well, with 1
if something was found, which is what ``--plant`` is for.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

from snapshot_api import audit, interrupts, meddlers, targets
from snapshot_api.crew import Crew
from snapshot_api.damage import damage
from snapshot_api.original import CAPACITY, HOOK, Original, Piece, pieces_from
from snapshot_api.owners import Estate, Owner
from snapshot_api.plants import PLANTS, Plant
from snapshot_api.stamps import PromiseBrokenError
from snapshot_api.tally import Tally

import pgalloc
from pgalloc import FileRange, MemoryFile, SnapshotCorruptError, testing

_RESTORES = 5
WITHOUT = ("fork", "close", "damage", "interrupt")


class Round:
    """One file: made, saved, and restored several times."""

    def __init__(
        self, number: int, options: argparse.Namespace, folder: Path, counts: Tally
    ) -> None:
        self.options = options
        self.path = folder / "image"
        self.counts = counts
        self.plant = Plant(options.plant)
        self.random = random.Random(f"{options.seed}/{number}")

    def run(self) -> None:
        """Everything once."""
        original = Original(self.random, self.options.threads, self.options.pages_max)
        with original.file:
            self._save(original)
            for _ in range(_RESTORES):
                self._restore()
            if self._may("interrupt", 0.3):
                interrupts.interrupt_all(original, self.path, self.random, self.counts)
            if self._may("close", 0.3):
                outcome = targets.save_while_closing(original.file, self.path, self.random)
                self.counts.add(outcome)
        audit.only_images(self.path.parent, {self.path.name})

    def _may(self, what: str, probability: float) -> bool:
        return what not in self.options.without and self.random.random() < probability

    # --- saving ----------------------------------------------------------------------------------

    def _save(self, original: Original) -> None:
        crew = Crew()
        meddlers.meddle(crew, original.file, self.random, self.counts)
        if self._may("fork", 0.5):
            piece = original.pieces[0]
            crew.start(
                partial(meddlers.keep_forking, crew, original.file, piece, self.counts), "fork"
            )
        try:
            if self.random.random() < 0.3:
                targets.fail_to_save(original.file, self.random)
                self.counts.add("saves to failing targets")
            how = self.random.choice(["path", "memory", "pipe"])
            targets.save(original.file, self.path, how, **targets.random_options(self.random))
            pgalloc.verify_image(self.path)
        finally:
            crew.stop.set()
            crew.finish()
        self.counts.add(f"saves to a {how}")
        self.counts.add("pages checked", original.expect("after a save"))
        audit.at_rest(original.file)

    # --- restoring -------------------------------------------------------------------------------

    def _restore(self) -> None:
        image = self.path.read_bytes()
        damaged = self._may("damage", 0.3) and not self.options.plant
        broken = damage(self.path, self.random) if damaged else None
        self.plant.spoil_image(self.path, self.random)
        if self.random.random() < 0.8:
            self._restore_in_background(broken)
        else:
            self._restore_at_once(broken)
        self.path.write_bytes(image)

    def _restore_in_background(self, broken: FileRange | None) -> None:
        pieces: list[Piece] = []
        hooks = {HOOK: lambda _, payload: pieces.extend(pieces_from(payload))}
        alone = self.random.random() < 0.3  # only the threads that need pages load them
        with testing.without_loaders() if alone else contextlib.nullcontext():
            file = MemoryFile.restore(self.path, background=True, hooks=hooks, capacity=CAPACITY)
            self.counts.add("restored in the background")
            self._live(file, pieces, broken, rush=alone and self.random.random() < 0.7)

    def _restore_at_once(self, broken: FileRange | None) -> None:
        how = self.random.choice(["path", "path", "memory", "pipe"])
        pieces: list[Piece] = []
        hooks = {HOOK: lambda _, payload: pieces.extend(pieces_from(payload))}
        try:
            with targets.source_of(self.path, how) as source:
                file = MemoryFile.restore(source, hooks=hooks, capacity=CAPACITY)
        except SnapshotCorruptError:
            if broken is None:
                raise
            self.counts.add("damaged images refused")
            return
        if broken is not None:
            raise PromiseBrokenError(f"a damaged image was restored from a {how}")
        self.counts.add(f"restored from a {how}")
        self._live(file, pieces, None, rush=False)

    def _live(
        self, file: MemoryFile, pieces: list[Piece], broken: FileRange | None, *, rush: bool
    ) -> None:
        estate = Estate(file, pieces, broken, self.plant)
        self.plant.spoil_file(file, pieces)
        shares: list[list[Piece]] = [[] for _ in range(self.options.threads)]
        for piece in pieces[1:]:
            for share in self.random.choices(shares, k=piece.refs):
                share.append(piece)
        shares[0] += pieces[:1] * (pieces[0].refs - 1)
        owners = [self._owner(i, estate, share) for i, share in enumerate(shares)]
        witness = self._owner(len(shares), estate, pieces[:1])  # no owner writes to the first piece
        witness.adopt()
        if rush:  # everything has its owner when the first page comes
            for owner in owners:
                owner.adopt_all()
            estate.crew.start(partial(meddlers.until_closed, file.wait_loaded), "loader")
        for owner in owners:
            estate.crew.start(owner.run, "owner")
        if self._may("fork", 0.5):
            job = partial(meddlers.keep_forking, estate.crew, file, pieces[0], self.counts)
            estate.crew.start(job, "fork")
        if self._may("close", 0.3):
            self._close_early(estate)
            return
        estate.crew.stop.wait(self.random.random() * 0.2)
        estate.crew.stop.set()
        estate.crew.finish()
        self._settle(estate, [witness, *owners])

    def _owner(self, number: int, estate: Estate, share: list[Piece]) -> Owner:
        return Owner(number, estate, self.random.getrandbits(64), list(share), self.counts)

    def _close_early(self, estate: Estate) -> None:
        estate.crew.stop.wait(self.random.random() * 0.05)
        estate.closing.set()
        estate.file.close()
        estate.crew.stop.set()
        estate.crew.finish()
        self.counts.add("files closed early")

    def _settle(self, estate: Estate, owners: list[Owner]) -> None:
        for owner in owners:
            owner.look_at_all("before the account is checked")
        audit.at_rest(estate.file)
        for owner in owners:
            owner.look_at_all("in the end")
            owner.drop_all()
        audit.nothing_left(estate.file)
        estate.file.close()


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pages-max", type=int, default=20000, help="that a file is made of")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--patience", type=float, default=180, help="a round that takes longer hangs"
    )
    parser.add_argument("--without", choices=WITHOUT, action="append", default=[])
    parser.add_argument("--plant", choices=PLANTS, help="a bug that must be found")
    return parser.parse_args()


def main() -> int:
    """Run it. The exit status."""
    options = parsed()
    faulthandler.enable()
    logging.getLogger("pgalloc").setLevel(logging.CRITICAL)  # images are damaged on purpose
    sys.setswitchinterval(1e-4)
    counts = Tally()
    end = time.monotonic() + options.seconds
    number = 0
    with tempfile.TemporaryDirectory(prefix="pgalloc-snapshots-") as folder:
        faulthandler.dump_traceback_later(options.patience, exit=True)  # it has a thread
        leftovers = audit.Leftovers()
        while time.monotonic() < end:  # time: how long the run is
            faulthandler.dump_traceback_later(options.patience, exit=True)
            try:
                Round(number, options, Path(folder), counts).run()
                leftovers.expect_none(after_interrupts="interrupt" not in options.without)
            except BaseException as error:
                traceback.print_exception(error)
                print(f"FAILED in round {number} of seed {options.seed}: {error}", flush=True)
                os._exit(1)  # what is broken must not get in the way of saying so
            number += 1
        faulthandler.cancel_dump_traceback_later()
    print(f"ok: {number} rounds; no page lost, mixed up or dirty, nothing left behind")
    counts.report()
    if options.plant:
        print("the planted bug was not found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
