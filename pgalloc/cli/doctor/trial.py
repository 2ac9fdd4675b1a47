"""The doctor's trial: allocate, commit, write, decommit and free on a real MemoryFile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pgalloc
from pgalloc.testing import verify

_PAGES = 1024
_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class TrialStep:
    """One thing that was tried; ``error`` is empty if it went well."""

    name: str
    error: str = ""


class _Stop(Exception):  # noqa: N818 - ends the trial, its cause is already recorded
    pass


class _Trial:
    def __init__(self) -> None:
        self.steps: list[TrialStep] = []

    @contextlib.contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Records how the block went; an exception is the diagnosis, and ends the trial."""
        try:
            yield
        except Exception as error:
            self.steps.append(TrialStep(name, f"{type(error).__name__}: {error}"))
            raise _Stop from error
        self.steps.append(TrialStep(name))


def run_trial() -> list[TrialStep]:
    """Tries all that pgalloc needs, up to the first failure, and closes the file. Never raises."""
    trial = _Trial()
    memory_file: pgalloc.MemoryFile | None = None
    with contextlib.suppress(_Stop):
        with trial.trying("open a memory file"):
            memory_file = pgalloc.MemoryFile()
        _use_pages(trial, memory_file)
    if memory_file is not None:
        with (
            contextlib.suppress(_Stop),
            trial.trying("close it: no byte left in this process's account"),
        ):
            memory_file.close()
            _expect(pgalloc.memory_accounting().total(), 0)
    return trial.steps


def _use_pages(trial: _Trial, memory_file: pgalloc.MemoryFile) -> None:
    length = _PAGES * pgalloc.PAGE_SIZE
    with trial.trying("allocate and commit: the kernel gives exactly that"):
        pages = memory_file.allocate(length, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT)
        _expect(memory_file.total_usage(), length)
    with trial.trying("fresh pages read as zero"), pages.view(readonly=True) as view:
        _expect(view == bytes(length), True)
    with trial.trying("write, and read back through another view"):
        pattern = b"pgalloc " * (length // 8)
        with pages.view() as view:
            view[:] = pattern
        with pages.view(readonly=True) as view:
            _expect(view == pattern, True)
    with trial.trying("decommit the first half: the kernel has it back, the rest is untouched"):
        with pages.slice(0, length // 2) as half:
            half.decommit()
        _expect(memory_file.total_usage(), length // 2)
        with pages.view(readonly=True) as view:
            _expect(view[length // 2 :] == pattern[length // 2 :], True)
    with trial.trying("free: the reclaimer gives all of it back"):
        pages.release()
        _expect(memory_file.wait_for_reclaim(timeout=_WAIT_S), True)
        _expect(memory_file.total_usage(), 0)
    with trial.trying("the invariants of the file hold"):
        verify(memory_file)


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise RuntimeError(f"expected {wanted!r}, found {found!r}")
