"""The goals, and the figures to beat. The only place where they are written down in code.

Source: ``measures.md`` of this project. The Go figures are those of gVisor's ``pgalloc`` of May
2024 and of August 2026, built from source and run on the kind of machine the goals are for (medians
of 15). They cannot be measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

US = 1e3
MS = 1e6
S = 1e9


@dataclass(frozen=True)
class Goal:
    """The figure of ``implementation`` is to be at most this; a multiple if ``of`` is given."""

    implementation: str
    at_most: float
    of: str | None = None


@dataclass(frozen=True)
class Workload:
    """What is measured. Figures are nanoseconds per operation, or bytes if ``unit`` says so."""

    name: str
    title: str
    go_2024: tuple[float, ...] = ()
    """One figure, or the lowest and the highest."""
    go_2026: tuple[float, ...] = ()
    limit: str | None = None
    """The implementation that does no more than what cannot be avoided."""
    python_limit: str | None = None
    """The same for calls from Python, if that is another one."""
    goals: tuple[Goal, ...] = field(default=())
    unit: str = "ns"
    driver: str | None = None
    """What the driver of the core calls the run that measures it."""


def _core(at_most: float, of: str | None = None) -> Goal:
    return Goal("core", at_most, of)


def _python(at_most: float, of: str | None = None) -> Goal:
    return Goal("python", at_most, of)


def _misaligned(gaps: str, go_2024: float) -> Workload:
    return Workload(
        f"misaligned_{gaps}",
        f"2 MiB bottom-up past {gaps} misaligned gaps",
        (go_2024,),
        (0.26 * US, 0.45 * US),
        goals=(_core(0.3 * US),),
        driver=f"misaligned_{gaps}",
    )


def _snapshot(
    action: str, pattern: str, title: str, go_s: tuple[float, float], goal_s: float
) -> Workload:
    return Workload(
        f"{action}_{pattern}",
        title,
        (go_s[0] * S,),
        (go_s[1] * S,),
        python_limit="sendfile",
        goals=(_python(goal_s * S),),
    )


def _caches() -> tuple[Workload, ...]:
    return tuple(
        Workload(f"cache_{action}_{size}{suffix}", f"cache: {action} {title}{by}")
        for size, title in (("1k", "1 KiB"), ("64k", "64 KiB"), ("4m", "4 MiB"))
        for action in ("get", "put")
        for suffix, by in (("", ""), ("_4t", ", four threads"))
    )


def _handing_over() -> tuple[Workload, ...]:
    return tuple(
        Workload(
            f"hand_over_{size}{suffix}",
            f"hand {title} to another process, {read}",
            goals=(_python(1.3, "DupFd of a memfd"),) if (size, suffix) == ("1m", "") else (),
        )
        for size, title in (("1m", "1 MiB"), ("1g", "1 GiB"))
        for suffix, read in (("", "first byte"), ("_pages", "a byte of each page"))
    )


WORKLOADS = (
    Workload(
        "pair",
        "allocate + free one 4 KiB page, pair",
        (152,),
        (340,),
        python_limit="two C calls",
        goals=(_core(60), _python(150)),
        driver="pair",
    ),
    Workload(
        "two_threads",
        "the same by two threads, per pair",
        (143,),
        (365,),
        goals=(_core(80),),
        driver="two_threads",
    ),
    Workload(
        "sequence",
        "200,000 x 4 KiB allocated, freed in order, drained, per page",
        (162,),
        (367,),
        goals=(_core(80),),
        driver="sequence",
    ),
    Workload(
        "every_second",
        "free every second of 400,000 pages until drained, per freed page",
        (1.86 * US,),
        (2.85 * US,),
        limit="bare",
        goals=(_core(1.2 * US),),
        driver="every_second",
    ),
    Workload(
        "bookkeeping",
        "bytes of bookkeeping per 4 KiB hole",
        (128,),
        (191,),
        goals=(_core(48),),
        unit="bytes",
        driver="every_second",
    ),
    Workload(
        "fragmented_top_down",
        "8 KiB top-down in that fragmented file",
        (84,),
        (207,),
        goals=(_core(60),),
        driver="fragmented_top_down",
    ),
    Workload(
        "fragmented_bottom_up",
        "4 KiB bottom-up in that fragmented file",
        (208,),
        (332,),
        goals=(_core(100),),
        driver="fragmented_bottom_up",
    ),
    _misaligned("1k", 12.6 * US),
    _misaligned("4k", 44.8 * US),
    _misaligned("16k", 164 * US),
    Workload(
        "references",
        "inc_ref + dec_ref of a 64 KiB part of 1 GiB, pair",
        (126,),
        (135,),
        python_limit="two C calls",
        goals=(_core(80), _python(150)),
        driver="references",
    ),
    Workload(
        "references_8192",
        "the same with 8,192 outstanding",
        (438,),
        (434,),
        goals=(_core(200),),
        driver="references_8192",
    ),
    Workload(
        "map",
        "map a random 64 KiB range",
        (9.4,),
        (11.7,),
        limit="atomic load",
        python_limit="memoryview slice",
        goals=(_core(2), _python(1.5, of="memoryview slice")),
        driver="map",
    ),
    Workload(
        "populate",
        "populate 1 GiB",
        (0.61 * S,),
        (0.61 * S,),
        limit="bare",
        goals=(Goal("core, 1 thread", 1.02, of="bare"), _core(0.6, of="bare")),
        driver="populate",
    ),
    Workload(
        "commit",
        "commit 1 GiB",
        (0.23 * S,),
        (0.25 * S,),
        limit="bare",
        goals=(_core(1.02, of="bare"),),
        driver="commit",
    ),
    Workload(
        "free_populate",
        "free 1 GiB and populate it again at once",
        (0.71 * S,),
        (0.095 * S,),
        limit="memset",
        goals=(_core(0.1 * S),),
        driver="free_populate",
    ),
    Workload(
        "give_back",
        "free 1 GiB until it has left the machine",
        (0.21 * S,),
        (0.20 * S,),
        limit="bare",
        goals=(_core(1.05, of="bare"),),
        driver="give_back",
    ),
    Workload(
        "huge_populate",
        "populate 1 GiB in huge pages",
        python_limit="bare",
        goals=(_python(1.1, "bare"),),
    ),
    Workload(
        "huge_give_back",
        "free 1 GiB in huge pages until it has left the machine",
        python_limit="bare",
        goals=(_python(1.2, "bare"),),
    ),
    Workload(
        "huge_put",
        "cache: put 4 MiB in huge pages, in steady replacement",
        python_limit="memcpy",
        goals=(_python(1.15, "memcpy"),),
    ),
    Workload(
        "huge_restore",
        "restore 1 GiB into huge pages",
        python_limit="bare",
        goals=(_python(1.2, "bare"),),
    ),
    Workload("huge_refill", "write 1 GiB of decommitted huge pages", python_limit="bare"),
    Workload("huge_parts", "free a page of huge pages at random, processor time"),
    Workload("huge_get", "cache: get 4 MiB in huge pages and read all of it", python_limit="dict"),
    Workload("huge_random", "read 8 bytes at random of 2 GiB in huge pages"),
    Workload("huge_churn_1g", "allocate, write and free 1 GiB in huge pages, in turn"),
    Workload("churn_64k", "allocate, write and free 64 KiB, in turn"),
    Workload("churn_2m", "allocate, write and free 2 MiB, in turn"),
    Workload("churn_1g", "allocate, write and free 1 GiB, in turn"),
    Workload(
        "update_usage_cold",
        "update_usage cold: 8 GiB, 1 page in 16 touched",
        (0.15 * S,),
        (0.15 * S,),
        limit="cachestat",
        goals=(_core(0.05 * S),),
        driver="update_usage",
    ),
    Workload(
        "update_usage_one_more",
        "update_usage after one more page",
        (0.28 * S,),
        (0.29 * S,),
        limit="cachestat",
        goals=(_core(0.02 * S),),
        driver="update_usage",
    ),
    Workload(
        "update_usage_same",
        "update_usage with nothing changed",
        (494,),
        (478,),
        limit="fstat",
        python_limit="os.fstat",
        goals=(_python(1 * US),),
        driver="update_usage",
    ),
    Workload(
        "evictables",
        "mark 100,000 evictable ranges, then evict, per range",
        (201 + 66,),
        (217 + 67,),
        goals=(_core(150),),
        driver="evictables",
    ),
    _snapshot("save", "interleaved", "save 1 GiB, page-interleaved", (1.20, 0.93), 0.5),
    _snapshot("save", "runs", "save 1 GiB, runs of 64 pages", (0.55, 0.42), 0.25),
    _snapshot("restore", "interleaved", "restore 1 GiB, page-interleaved", (0.74, 0.37), 0.3),
    _snapshot("restore", "runs", "restore 1 GiB, runs of 64 pages", (0.31, 0.28), 0.2),
    Workload(
        "first_byte_1g",
        "background restore of 1 GiB: first byte",
        goals=(_python(10 * MS),),
    ),
    Workload(
        "first_byte_8g",
        "background restore of 8 GiB: first byte",
        goals=(_python(10 * MS),),
    ),
    Workload("arrays", "1 MiB: allocate, fill, read, let go"),
    Workload("kv", "store and read back 64 KiB values, per value"),
    *_caches(),
    Workload(
        "guard_idle", "the guard's thread, far from the limit, per second", goals=(_core(MS),)
    ),
    Workload("guard_reaction", "out of the headroom again, limit of 256 MiB"),
    Workload(
        "guard_move", "an idle process is moved: until its guard says so", goals=(_core(50 * MS),)
    ),
    Workload(
        "guard_limit", "its limit is lowered: until its guard says so", goals=(_core(50 * MS),)
    ),
    *_handing_over(),
    Workload(
        "round_trip",
        "ask the owner from a peer, and have the answer",
        python_limit="socket",
        goals=(_python(1.6, "socket"),),
    ),
    Workload(
        "peer_pair",
        "allocate + free one 4 KiB page from a peer, pair",
        python_limit="socket",
        goals=(_python(2.5, "socket"),),
    ),
    Workload(
        "workers_memory",
        "8 workers and 1 GiB of numpy data: memory per byte of it",
        goals=(_python(1.1),),
        unit="bytes",
    ),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}
