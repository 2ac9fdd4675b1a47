"""Add a reference to a part of a large range and drop it, from Python."""

from __future__ import annotations

import random

import pgalloc
from benchmarks.measure import GIB, KIB, Case, Sample, seconds_of
from benchmarks.pairs import two_c_calls

_OPS = 300_000
_PART = 64 * KIB
_PARTS = GIB // _PART


def _inc_and_dec(workload: str, outstanding: int) -> Sample:
    with pgalloc.MemoryFile() as file:
        start = file.allocate_range(GIB).start
        parts = [
            pgalloc.FileRange(start + i * _PART, start + (i + 1) * _PART) for i in range(_PARTS)
        ]
        for part in parts[: 2 * outstanding : 2]:
            file.inc_ref(part)
        picked = random.Random(1).choices(parts, k=_OPS)
        inc, dec = file.inc_ref, file.dec_ref

        def work() -> None:
            for part in picked:
                inc(part)
                dec(part)

        return Sample(workload, "python", _OPS, seconds_of(work))


CASES = [
    Case("references", "python", lambda: _inc_and_dec("references", 0)),
    Case("references", "two C calls", lambda: two_c_calls("references")),
    Case("references_8192", "python", lambda: _inc_and_dec("references_8192", 8192)),
]
