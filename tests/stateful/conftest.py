"""Hypothesis profiles, by HYPOTHESIS_PROFILE.

"suite", the default, is for every change; CI runs "ci" in a job of its own, and a night's run
"long", of a hundred thousand steps a machine.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_common = settings(
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("suite", _common, max_examples=60, stateful_step_count=50)
settings.register_profile("ci", _common, max_examples=250, stateful_step_count=50)
settings.register_profile("long", _common, max_examples=2500, stateful_step_count=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
