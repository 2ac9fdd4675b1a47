"""The jobs: what each weighs, how long it should take, and what it needs.

Invariants:
1. Every job has a function ``job_NAME`` in jobs.sh or night.sh, and every such function is a job.
2. Every job of CI needs ``readme_test``, directly or through another: it runs first, and alone.
3. Seconds are what a machine of two cores took, with a neighbour for jobs of weight 1; the order of
   the jobs depends on them, their success does not. Only ``limit_s`` ends a job.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One job. ``seconds`` is what is expected; ``limit_s`` is when it counts as hanging."""

    name: str
    weight: int  # in cores
    seconds: float
    needs: tuple[str, ...] = ()
    limit_s: float = 600
    # Neighbours would falsify what it shows.
    alone: bool = False
    # A path that it leaves in the checkout. A run of named jobs does not repeat the job for the
    # sake of those that need it if this is there.
    leaves: str = ""


_TOOLS = ("tools",)
_DRIVERS = ("drivers",)
_DEBUG = ("drivers_debug",)
_ASAN = ("asan_build",)
_TSAN = ("tsan_build",)

CI = (
    Job("readme_test", 2, 260, limit_s=1200, alone=True, leaves=".venv/bin/pgalloc"),
    Job("tools", 1, 10, ("readme_test",)),
    # What others need.
    Job("drivers", 1, 75, _TOOLS),
    Job("drivers_debug", 1, 90, _TOOLS),
    Job("asan_build", 1, 140, _TOOLS, limit_s=1200),
    Job("tsan_build", 1, 165, _TOOLS, limit_s=1200),
    # What is written.
    Job("ci_self", 1, 20, _TOOLS, limit_s=180),
    Job("lint", 1, 12, _TOOLS),
    Job("tidy", 1, 165, _TOOLS, limit_s=900),
    # Elsewhere.
    Job("other_python", 2, 75, _TOOLS, limit_s=900),
    Job("libraries", 1, 110, _TOOLS),
    Job("limits", 2, 60, _TOOLS),
    Job("huge_pages", 2, 240, _DRIVERS, limit_s=1200),
    Job("vm", 2, 70, _TOOLS, limit_s=1200),
    Job("readme_demo", 1, 70, _TOOLS),
    # Sanitizers and valgrind.
    Job("asan_rooms", 1, 100, _ASAN, limit_s=1200),
    Job("asan_hostile", 1, 35, _ASAN, limit_s=1200),
    Job("asan_faults", 1, 60, _ASAN, limit_s=1200),
    Job("asan_leaks", 1, 65, _ASAN, limit_s=900),
    Job("asan_images", 1, 45, _ASAN),
    Job("asan_native", 1, 80, _ASAN),
    Job("asan_sharing", 2, 35, _ASAN),
    Job("tsan_rooms", 1, 25, _TSAN, limit_s=1200),
    Job("tsan_native", 1, 75, _TSAN),
    Job("tsan_torture", 2, 15, _TSAN),
    Job("tsan_api", 2, 60, _TSAN),
    Job("valgrind_sets", 1, 10, _DEBUG, limit_s=900),
    Job("valgrind_torture", 1, 10, _DEBUG, limit_s=900),
    # Long forms of what the suite samples.
    Job("state_machines", 1, 65, _TOOLS),
    Job("faults", 1, 150, _TOOLS, limit_s=900),
    # Stress, and the bugs that it must find.
    Job("stress_sets", 1, 35, _DRIVERS),
    Job("stress_images", 1, 10, _DRIVERS),
    Job("stress_torture", 2, 40, _DRIVERS),
    Job("stress_sharing", 2, 110, _TOOLS),
    Job("stress_snapshots", 1, 25, _TOOLS),
    Job("planted_images", 1, 5, _DRIVERS),
    Job("planted_torture", 1, 10, _DRIVERS),
    Job("planted_api", 1, 25, _TOOLS),
    Job("planted_sharing", 1, 80, _TOOLS),
    Job("planted_discards", 1, 5, _TOOLS),
    Job("planted_mutants", 1, 90, _TOOLS),
)

_HOUR = 3600.0
_NIGHT = 12 * _HOUR

LONG = (
    Job("night_segment_set_1", 1, 7 * _HOUR, _DRIVERS, limit_s=_NIGHT),
    Job("night_segment_set_2", 1, 7 * _HOUR, _DRIVERS, limit_s=_NIGHT),
    Job("night_state_machines", 1, 1.5 * _HOUR, _TOOLS, limit_s=_NIGHT),
    Job("night_torture", 2, 1 * _HOUR, _DRIVERS, limit_s=1.5 * _HOUR),
    Job("night_torture_api", 2, 1 * _HOUR, _TOOLS, limit_s=1.5 * _HOUR),
    Job("night_sharing", 2, 1 * _HOUR, _TOOLS, limit_s=1.5 * _HOUR),
    Job("night_snapshots", 1, 1 * _HOUR, _TOOLS, limit_s=1.5 * _HOUR),
    Job("night_limits", 2, 0.3 * _HOUR, _TOOLS, limit_s=2 * _HOUR),
    Job("night_vm", 2, 1.5 * _HOUR, _TOOLS, limit_s=5 * _HOUR),
    Job("night_other_pythons", 2, 0.3 * _HOUR, _TOOLS, limit_s=2 * _HOUR),
    Job("night_save_killed", 1, 0.3 * _HOUR, _TOOLS, limit_s=4 * _HOUR),
    Job("night_hostile_images", 1, 1 * _HOUR, _TOOLS, limit_s=4 * _HOUR),
)
