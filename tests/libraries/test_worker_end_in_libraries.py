"""Workers of libraries that own what they return, and end: the job ``libraries`` of CI (row L8)."""

from __future__ import annotations

import multiprocess
import owners
import pytest
from joblib.externals.loky import ProcessPoolExecutor

pytestmark = pytest.mark.leaks_allowed  # as in test_worker_end.py


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocess_loses_nothing(method: str) -> None:
    context = multiprocess.get_context(method)
    with context.Pool(3, maxtasksperchild=1) as pool:
        results = pool.map(owners.make, range(60), chunksize=10)
    for number, own in enumerate(results):
        owners.check(own, number)


def test_loky_loses_nothing() -> None:
    with ProcessPoolExecutor(2) as executor:
        results = list(executor.map(owners.make, range(20)))
    for number, own in enumerate(results):
        owners.check(own, number)
