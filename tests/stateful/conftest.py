"""Hypothesis profiles: "ci" by default; HYPOTHESIS_PROFILE=long for a hundred thousand steps."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_common = settings(
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("ci", _common, max_examples=250, stateful_step_count=50)
settings.register_profile("long", _common, max_examples=2500, stateful_step_count=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
