"""How often each policy of Cache has what is asked for: ``python -m benchmarks.policies``.

Two traces of keys with values of 4 KiB, through the Cache itself, at several sizes:

* ``zipf + scans``: popularity after Zipf (exponent 0.9 over 50,000 keys), and every 20,000 requests
  a scan over 10,000 keys that are not asked for again: what a cache behind a web service sees.
* ``recency``: 9 of 10 requests are for one of the last keys, near ones more often (geometric, mean
  1,500 keys back); the others are new: what least recently used is best at.

The seed is fixed, so the rates are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import pgalloc

_REQUESTS = 300_000
_VALUE = bytes(pgalloc.PAGE_SIZE)
_SIZES = (500, 2_000, 8_000)

Trace = npt.NDArray[np.int64]


def zipf_with_scans() -> Trace:
    """Popular keys, and scans between them."""
    random = np.random.default_rng(1)
    keys = 50_000
    weights = 1 / np.arange(1, keys + 1) ** 0.9
    popular = random.choice(keys, size=_REQUESTS, p=weights / weights.sum())
    parts: list[Trace] = []
    fresh = keys
    for start in range(0, _REQUESTS, 20_000):
        parts += [popular[start : start + 20_000], np.arange(fresh, fresh + 10_000)]
        fresh += 10_000
    return np.concatenate(parts)


def recency() -> Trace:
    """Keys that were used lately, and new ones."""
    random = np.random.default_rng(2)
    back = random.geometric(1 / 1_500, size=_REQUESTS)
    is_new = random.random(_REQUESTS) < 0.1
    used = list(range(20_000))
    for distance, new in zip(back.tolist(), is_new.tolist(), strict=True):
        used.append(len(used) + 1_000_000 if new else used[-min(distance, len(used))])
    return np.array(used[20_000:])


TRACES = {"zipf + scans": zipf_with_scans, "recency": recency}


def hit_rate(policy: pgalloc.Policy, trace: Trace, values: int) -> float:
    """The share of requests that find their value in a cache of so many."""
    with pgalloc.Cache(values * len(_VALUE), policy=policy) as cache:
        for key in trace.tolist():
            if cache.get(key) is None:
                cache[key] = _VALUE
        return cache.stats().hits / len(trace)


def rows() -> Iterator[tuple[str, int, dict[pgalloc.Policy, float]]]:
    """(trace, values in the cache, rates)."""
    for name, make in TRACES.items():
        trace = make()
        for values in _SIZES:
            yield name, values, {p: hit_rate(p, trace, values) for p in pgalloc.Policy}


def main() -> None:
    """Print the table."""
    table = Table(title="hit rates")
    for column in ("trace", "values held", *map(str, pgalloc.Policy)):
        table.add_column(column, justify="left" if column == "trace" else "right")
    for name, values, rates in rows():
        best = max(rates.values())
        cells = [
            f"[bold]{rate:.1%}[/]" if rate == best else f"{rate:.1%}" for rate in rates.values()
        ]
        table.add_row(name, f"{values:,}", *cells)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
